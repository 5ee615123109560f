"""From runs on disk to a comparison: tables, figures and one HTML page.

Everything here reads `result.json` and `status.json` and nothing else: no torch, no model, so a
comparison of hundreds of runs takes seconds and works on a machine that cannot train.

    files       where the runs are, and what state each one is in
    collect     which of them can be compared, and why the others cannot
    statistics  intervals, paired tests, correction for many arms, power
    arms        runs grouped into arms, cut to common seeds
    fairness    arms whose budget or evaluation differs
    curves      learning curves and loads of an arm over its seeds
    comparison  arms against a baseline: differences, fairness, convergence
    verdict     the same in sentences; notes: how to read the tables
    columns     what the tables have; table: terminal, Markdown, CSV, LaTeX
    figures     PNG and SVG; style, scatter: what they share with the page
    html        the self-contained page, with page_data and page/
"""
