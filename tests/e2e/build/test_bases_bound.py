"""Public bases stay in the engine as a cache, and no longer than the configuration says."""

import uuid

from harness.base_image import publish_busybox
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.registry import Registry
from harness.waiting import until


def test_public_bases_go_when_there_is_too_much_of_them(engine: PrivateEngine, registry: Registry) -> None:
    """The next pruning takes a base beyond the bound away, says so, and leaves what the operator has pulled."""
    pulled, operators = (publish_busybox(engine, registry, f"two/{uuid.uuid4()}", "v1") for _ in range(2))
    engine.docker("pull", operators)
    with BuildBox(engine) as b:
        for number, base in enumerate((pulled, operators)):
            b.succeeded(b.build(f"{registry.host}/two/bases:{number}", f"FROM {base}\nRUN true\n"))
        names = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
        assert {pulled, operators} <= set(names)
        config = b.daemon.config_file.read_text()
        b.daemon.config_file.write_text(config.replace('["engine"]', '["engine"]\nbases_keep_bytes = 1'))
        b.restart()
        until(lambda: not engine.docker("images", "--quiet", pulled), what="the base to go")
        until(lambda: b.daemon.sqlite("select * from pulled_base") == [], what="its record to go")
        assert f'event="removed an unused base" name={pulled} size_bytes=' in b.daemon.log_text()
        assert engine.docker("images", "--quiet", operators)
        engine.docker("rmi", operators)
