"""The rows of the table, and the page that shows them."""

import dataclasses
import datetime
import pathlib
import platform

GREEN, EXPLAINED, RED = "passed", "explained", "FAILED"

BEGIN, END = "<!-- written by scripts/conformance -->", "<!-- end -->"


@dataclasses.dataclass
class Row:
    """One run of one tool. `why` explains a result that differs from what the tool calls success."""

    tool: str
    run: str
    seen: str
    passed: bool
    why: str = ""

    @property
    def result(self):
        if not self.passed:
            return RED
        return EXPLAINED if self.why else GREEN

    def line(self):
        seen = f"{self.seen}. {self.why}" if self.why else self.seen
        cells = [self.tool, self.run, seen, self.result]
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def count(tool, run, checks, why=""):
    """A row for named checks: name → whether it passed."""
    failed = [name for name, passed in checks.items() if not passed]
    seen = f"{len(checks) - len(failed)} of {len(checks)}" + (f"; failed: {', '.join(failed)}" if failed else "")
    return Row(tool, run, seen, not failed, why)


def write(page: pathlib.Path, rows, version):
    """Replaces the table in the page. Rows of tools that did not run stay."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    # Their names without a version.
    ran = {"tool", *(row.tool.split()[0] for row in rows)}
    kept = [line for line in old.splitlines() if line.startswith("| ") and line.split()[1] not in ran]
    lines = sorted([*kept, *(row.line() for row in rows)], key=lambda line: line.split(" | ")[0].lower())
    today = datetime.date.today().isoformat()
    note = f"{version}, release binary, {today}, {platform.system()} on {platform.machine()}:"
    table = "\n".join(["| tool | run | seen | |", "|---|---|---|---|", *lines])
    page.write_text(f"{before}{BEGIN}\n\n{note}\n\n{table}\n\n{END}{after}")
