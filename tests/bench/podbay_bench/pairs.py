"""Paired measuring: one value of each server in turn, so that what else the machine does meets both."""

import statistics


def quantile(values, part):
    """The value that `part` (0 to 1) of all are below, from the sorted list: no interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class Rows:
    """What was measured, and what was checked."""

    def __init__(self):
        self.rows = []
        self.checks = []
        # {transfer: {process: seconds of CPU time per GB}}; a figure that other load hardly changes.
        self.cpu = {}
        # {kind of connection: {process: {rss, pss} in bytes per connection}}.
        self.idle = {}

    def pair(self, name, unit, values, *, aim=None, larger_is_better=False):
        """A row of paired values {server: [value, ...]}. The ratio is podbay / sshd: the median over the pairs."""
        ours, theirs = values["podbay"], values["sshd"]
        ratios = [a / b for a, b in zip(ours, theirs) if b]
        if not ratios:
            raise ValueError(f"{name}: nothing was measured")
        ratio = statistics.median(ratios)
        reached = None
        if aim is not None:
            reached = ratio >= aim if larger_is_better else ratio <= aim
        self.rows.append({
            "name": name, "unit": unit, "podbay": statistics.median(ours), "sshd": statistics.median(theirs),
            "ratio": ratio, "ratio_quartiles": [quantile(ratios, 0.25), quantile(ratios, 0.75)], "pairs": len(ratios),
            "aim": aim, "larger_is_better": larger_is_better, "reached": reached,
            "values": {"podbay": ours, "sshd": theirs},
        })

    def plain(self, name, unit, *, podbay=None, sshd=None, aim=None):
        """A row of single values; an aim is a most for podbay's."""
        reached = None if aim is None or podbay is None else podbay <= aim
        ratio = podbay / sshd if podbay is not None and sshd else None
        self.rows.append({"name": name, "unit": unit, "podbay": podbay, "sshd": sshd, "ratio": ratio, "aim": aim,
                          "aim_is_absolute": True, "reached": reached})

    def check(self, name, good, detail=""):
        """Something that must hold whatever the machine's speed."""
        self.checks.append({"name": name, "good": bool(good), "detail": detail})

    @property
    def good(self):
        return all(check["good"] for check in self.checks)


def measure(servers, times, one):
    """{server: values}: `one(server)` so many times for each, the order turned round each time."""
    values = {server.name: [] for server in servers}
    for round_ in range(times):
        for server in servers if round_ % 2 == 0 else reversed(servers):
            values[server.name].append(one(server))
    return values


def number(value, unit):
    if value is None:
        return "–"
    if unit == "ms":
        return f"{value * 1e3:.2f}" if value < 0.01 else f"{value * 1e3:.1f}"
    if unit in ("MB/s", "MB"):
        return f"{value / 1e6:.0f}" if value >= 10e6 else f"{value / 1e6:.2f}"
    if unit == "kB":
        return f"{value / 1e3:.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def table(rows):
    """As Markdown."""
    lines = ["| | unit | podbay | sshd | ratio (quartiles) | aim | reached |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows.rows:
        unit = row["unit"]
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        if "ratio_quartiles" in row and row["pairs"] > 1:
            ratio += " ({:.2f}–{:.2f})".format(*row["ratio_quartiles"])
        aim = "–"
        if row["aim"] is not None:
            sign = "≥" if row.get("larger_is_better") else "≤"
            aim = f"{sign} {number(row['aim'], unit)} {unit}" if row.get("aim_is_absolute") else f"{sign} {row['aim']:g}×"
        reached = {None: "–", True: "yes", False: "**no**"}[row["reached"]]
        cells = [row["name"], unit, number(row["podbay"], unit), number(row["sshd"], unit), ratio, aim, reached]
        lines.append("| " + " | ".join(cells) + " |")
    if rows.cpu:
        parts = list(dict.fromkeys(part for used in rows.cpu.values() for part in used if part != "pod supervisors"))
        lines += ["", f"| CPU seconds per GB | {' | '.join(parts)} |", "| --- |" + " --- |" * len(parts)]
        for transfer, used in rows.cpu.items():
            lines.append(f"| {transfer} | " + " | ".join(f"{used[part]:.2f}" for part in parts) + " |")
    lines += ["", "| checked | | |", "| --- | --- | --- |"]
    for check in rows.checks:
        lines.append(f"| {check['name']} | {'good' if check['good'] else '**FAILED**'} | {check['detail']} |")
    return "\n".join(lines)
