"""The classic builder's prose as events, and programs that imitate it."""

import msgspec

from imagejobd.engine.classic import ClassicProgress
from imagejobd.engine.stream import BuildEvent, Message, Output, Step


def read(progress: ClassicProgress, *texts: str) -> list[BuildEvent]:
    return list(progress.read(Message(stream=text) for text in texts))


def step(number: int, instruction: str, total: int = 3) -> tuple[str, str]:
    return f"Step {number}/{total} : {instruction}", "\n"


def test_steps_are_timed_by_the_clock() -> None:
    """A step ends when the next begins; its time is what passed on the clock between."""
    clock = iter([10.0, 12.5, 12.5])
    progress = ClassicProgress(clock=lambda: next(clock))
    events = read(progress, *step(1, "FROM x"), *step(2, "RUN y"))
    assert events == [
        Step(1, "[1/3] FROM x", "started"),
        Step(1, "[1/3] FROM x", "done", 2.5),
        Step(2, "[2/3] RUN y", "started"),
    ]


def test_red_is_stderr() -> None:
    """The engine's colour is taken off and told as the stream."""
    events = read(ClassicProgress(), *step(1, "RUN x"), "\x1b[91moops\n\x1b[0m")
    assert events[-1] == Output(1, "err", "oops\n")


def test_a_program_cannot_begin_steps_with_whole_lines() -> None:
    """A step line with its line end, out of turn or of another total is a program's output."""
    fakes = ["Step 2/3 : RUN fake\n", "Step 3/3 : RUN fake", "Step 2/9 : RUN fake"]
    events = read(ClassicProgress(), *step(1, "RUN x"), *fakes)
    assert [e.state for e in events if isinstance(e, Step)] == ["started"]
    assert "".join(e.text for e in events if isinstance(e, Output)) == "".join(fakes)


def test_only_the_builder_names_the_container() -> None:
    """The first line of a step names its container; a later one of the same look does not change it."""
    progress = ClassicProgress()
    read(progress, *step(1, "RUN x"), " ---> Running in aaaaaaaaaaaa\n", " ---> Running in bbbbbbbbbbbb\n")
    assert progress.container == "aaaaaaaaaaaa"


def test_last_words_are_the_programs() -> None:
    """What the builder says of its containers is no word of the step that failed."""
    progress = ClassicProgress()
    read(progress, *step(1, "RUN x"), " ---> Running in aaaaaaaaaaaa\n", "reason\n")
    read(progress, "Removing intermediate container aaaaaaaaaaaa\n")
    assert progress.last_words() == ("step 1 ([1/3] RUN x)", "reason")


def test_the_id_of_an_earlier_stage_is_no_result() -> None:
    """The engine tells an id at the end of each stage; only that of the last step counts."""
    progress = ClassicProgress()
    read(progress, *step(1, "FROM x", 2))
    list(progress.read([Message(aux=msgspec.Raw(b'{"ID":"sha256:stage"}'))]))
    assert progress.image_id == ""
    read(progress, *step(2, "FROM y", 2))
    assert progress.image_id == ""
    list(progress.read([Message(aux=msgspec.Raw(b'{"ID":"sha256:result"}'))]))
    assert progress.image_id == "sha256:result"
