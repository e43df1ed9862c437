"""The report's page, with `$name` where content goes. Everything is inside: it opens without a network."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1b1f24; --soft: #5b6570; --line: #e3e7eb; --tint: #f6f8fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 28px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 44px 0 10px; }
p, figcaption { color: var(--soft); margin: 4px 0 12px; max-width: 88ch; }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 22px 0 6px; }
.facts div { background: var(--tint); border: 1px solid var(--line); border-radius: 8px;
  padding: 9px 14px; min-width: 128px; }
.facts b { display: block; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: 12.5px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { background: var(--tint); font-weight: 600; position: sticky; top: 0; }
th[data-sort] { cursor: pointer; }
th[data-sort]:hover { color: var(--accent); }
tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: #fafcfd; }
tr.dense td { font-weight: 600; background: var(--tint); }
td.none { color: var(--soft); text-align: left; }
td small { color: var(--soft); font-size: 12px; }
i.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.plot { border: 1px solid var(--line); border-radius: 8px; padding: 6px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 16px; }
.pictures img { width: 100%; border: 1px solid var(--line); border-radius: 8px; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 12.5px/1.45 ui-monospace, Consolas, monospace; }
</style>
<script>$plotly</script>
</head>
<body><main>
<h1>$title</h1>
<p>$subtitle</p>
<div class="facts">$facts</div>

<h2>Accuracy over cost</h2>
<p>Each point is a method at a budget; bars are 95 % intervals. The dashed line is the dense model, the band its
interval. Switch between tokens, operations and time above the plot;
click a name to hide it, double-click to see it alone.</p>
<div class="plot">$pareto</div>

<h2>All methods and budgets</h2>
<p>$note Click a column to sort by it.</p>
<div class="scroll">$table</div>

<h2>Accuracy by family of questions</h2>
<p>Percent right; colour shows the difference from the dense model.</p>
<div class="scroll">$families</div>

$overlays

<h2>Configuration and provenance</h2>
<details><summary>Experiment (config.yaml, can be run again)</summary><pre>$config</pre></details>
<details><summary>Versions, machine, time</summary><pre>$provenance</pre></details>
<details><summary>How numbers were made</summary>$notes</details>
</main>
<script>
document.querySelectorAll("th[data-sort]").forEach((head) => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const up = head.dataset.sort !== "up";
  head.closest("tr").querySelectorAll("th").forEach((other) => { if (other.dataset.sort) other.dataset.sort = "no"; });
  head.dataset.sort = up ? "up" : "down";
  const value = (row) => row.cells[column] ? row.cells[column].dataset.value ?? row.cells[column].textContent : "";
  const number = (text) => text === "" ? Infinity : Number(text);
  const order = (a, b) => {
    const x = value(a), y = value(b);
    const gap = isNaN(number(x)) || isNaN(number(y)) ? x.localeCompare(y) : number(x) - number(y);
    return up ? gap : -gap;
  };
  [...body.rows].sort(order).forEach((row) => body.append(row));
}));
</script>
</body>
</html>
"""
