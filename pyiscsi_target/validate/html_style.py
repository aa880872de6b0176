"""How the HTML report looks: light, dark and on paper."""

STYLE = """
:root {
  --page: #f5f6f8; --card: #ffffff; --text: #1b1f24; --soft: #5b6470; --line: #e1e4e8;
  --pass: #1a7f37; --fail: #c62828; --warn: #9a6700; --skip: #6e7781;
  --pass-back: #e6f4ea; --fail-back: #fdeaea; --warn-back: #fff6dd; --skip-back: #eef0f2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --card: #181c22; --text: #e3e7ec; --soft: #98a2ae; --line: #2a3038;
    --pass: #4ac26b; --fail: #ff7b72; --warn: #e3b341; --skip: #8b949e;
    --pass-back: #14291b; --fail-back: #331a1b; --warn-back: #2e2611; --skip-back: #20252c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2.5rem; }
.kind { margin: 0; color: var(--soft); letter-spacing: .02em; }
h1 { margin: .1rem 0 .2rem; font-size: clamp(1.6rem, 6vw, 2.2rem); line-height: 1.2; }
header.ready h1 { color: var(--pass); }
header.not_ready h1 { color: var(--fail); }
header.unproven h1 { color: var(--warn); }
.headline { margin: 0 0 1rem; color: var(--soft); }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; list-style: none; margin: 0; padding: 0; }
.counts li { border-radius: .6rem; padding: .35rem .9rem; }
.counts b { font-size: 1.25rem; margin-right: .2rem; }
li.pass { color: var(--pass); background: var(--pass-back); }
li.fail { color: var(--fail); background: var(--fail-back); }
li.warn { color: var(--warn); background: var(--warn-back); }
li.skip { color: var(--skip); background: var(--skip-back); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .8rem;
  margin: 1.25rem 0; padding: 1rem 1.25rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: .8rem 2rem;
  margin: 0; }
dl div:last-child { grid-column: 1 / -1; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
h2 { margin: 0 0 .6rem; font-size: 1.1rem; display: flex; justify-content: space-between;
  gap: 1rem; }
h2 span { color: var(--soft); font-weight: normal; font-size: .9rem; }
.worries ul { list-style: none; margin: 0; padding: 0; }
.worries li { background: none; color: inherit; border-left: 4px solid; padding: .1rem .8rem;
  margin: .35rem 0; }
.worries li.fail { border-color: var(--fail); }
.worries li.warn { border-color: var(--warn); }
.worries a { color: inherit; font-weight: 600; margin-right: .4rem; }
table { width: 100%; border-collapse: collapse; table-layout: fixed; }
thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
td { vertical-align: top; padding: .55rem .5rem; border-top: 1px solid var(--line); }
td:first-child { padding-left: 0; }
col.verdicts { width: 5rem; }
col.checks { width: 46%; }
tr:target td { background: var(--warn-back); }
td p { margin: 0; }
.verdict { display: inline-block; min-width: 3.6rem; text-align: center; font-weight: 700;
  font-size: .8rem; letter-spacing: .04em; border-radius: .45rem; padding: .15rem .4rem; }
.pass .verdict { color: var(--pass); background: var(--pass-back); }
.fail .verdict { color: var(--fail); background: var(--fail-back); }
.warn .verdict { color: var(--warn); background: var(--warn-back); }
.skip .verdict { color: var(--skip); background: var(--skip-back); }
.title { font-weight: 600; }
.proves { color: var(--soft); }
.source { color: var(--soft); font-size: .8rem; }
.skip .seen { color: var(--soft); }
.remark b { color: var(--soft); font-weight: 600; font-size: .85rem; margin-right: .2rem; }
footer { color: var(--soft); padding-bottom: 2.5rem; font-size: .85rem; }
@media (max-width: 46rem) {
  tr { display: grid; grid-template-columns: 4.6rem 1fr; border-top: 1px solid var(--line); }
  tbody tr td { border: 0; }
  td:nth-child(3) { grid-column: 2; padding-top: 0; }
  dl { grid-template-columns: 1fr; }
}
@media print {
  :root { --page: #fff; --card: #fff; --text: #000; --soft: #444; --line: #bbb; }
  body { font-size: 10pt; }
  header { padding-top: 0; }
  section { border: 0; padding: 0; border-radius: 0; }
  tr, .worries li { break-inside: avoid; }
  h2 { break-after: avoid; }
  table { break-before: avoid; }
  .verdict, .counts li { border: 1px solid; }
  .worries a { text-decoration: none; }
}
"""
