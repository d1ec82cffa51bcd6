"""What `/metrics` says, as Prometheus reads it."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The samples of one answer. `families` are the names that the answer gives help for."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        # The parser leaves out what a counter's name ends with.
        self.families = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """One sample. Raises `KeyError` where there is none."""
        return self._samples[name, frozenset(labels.items())]

    def labels(self) -> Mapping[str, set[str]]:
        """The labels that the samples of each name have."""
        labels: dict[str, set[str]] = {}
        for name, pairs in self._samples:
            labels.setdefault(name, set()).update(label for label, _ in pairs)
        return labels
