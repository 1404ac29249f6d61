"""The tables that benchmarks print: Markdown, with the bar beside each figure that has one."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    figure: float
    unit: str
    # The figure must not exceed it; None where it is there for comparison.
    bar: float | None = None

    @property
    def missed(self) -> bool:
        return self.bar is not None and self.figure > self.bar


@dataclass
class Table:
    """Figures that were measured in one run."""

    title: str
    # How, in a sentence.
    how: str
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, figure: float, unit: str, bar: float | None = None) -> None:
        self.rows.append(Row(what, figure, unit, bar))

    def render(self) -> str:
        lines = [
            f"\n## {self.title}\n",
            f"{self.how}\n",
            "| what | figure | at most | |",
            "| --- | ---: | ---: | --- |",
        ]
        for row in self.rows:
            bar = "" if row.bar is None else f"{row.bar:g} {row.unit}"
            verdict = "" if row.bar is None else "missed" if row.missed else "met"
            lines.append(f"| {row.what} | {row.figure:.3g} {row.unit} | {bar} | {verdict} |")
        return "\n".join(lines)


@dataclass
class Grid:
    """A table of words, for what no single figure tells."""

    title: str
    how: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        self.rows.append(list(cells))

    def render(self) -> str:
        lines = [f"\n## {self.title}\n", f"{self.how}\n"]
        for cells in (self.columns, ["---"] * len(self.columns), *self.rows):
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)
