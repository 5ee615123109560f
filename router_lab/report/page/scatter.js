// Quality against imbalance.
(() => {
  const place = document.getElementById("scatter-chart");
  if (!place) return;

  const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

  // A box for each name next to its point: greedily, the one with the least overlap.
  function beside(points, inner, marks) {
    const taken = [];
    return points.map(({ arm, x, y }) => {
      const width = 7.2 * cut(arm.name).length, height = 15;
      const options = [];
      for (const away of [9, 17, 27])
        for (const [dx, dy] of [[away, 0], [-away, 0], [0, away + 4], [0, -away - 4], [away, away], [away, -away], [-away, away], [-away, -away]]) {
          const left = x + dx - (dx < 0 ? width : dx > 0 ? 0 : width / 2), top = y + dy - height / 2;
          options.push([left, top, left + width, top + height]);
        }
      const cost = (box, rank) => taken.reduce((sum, other) => sum + overlap(box, other), 0)
        + 2 * marks.reduce((sum, mark) => sum + overlap(box, mark), 0)
        + 2 * (width * height - overlap(box, [inner.left, inner.top, inner.right, inner.bottom])) + 0.5 * rank;
      const best = options.reduce((least, box, rank) => { const c = cost(box, rank); return c < least.c ? { c, box } : least; }, { c: Infinity }).box;
      taken.push(best);
      return best;
    });
  }

  function draw() {
    const arms = visible(), routed = arms.filter((arm) => arm.scatter), dense = arms.filter((arm) => !arm.scatter);
    if (!routed.length) {
      place.replaceChildren(make("p", { class: "soft" }, null, "No data for the arms shown."));
      return;
    }
    const wide = place.clientWidth > 620, height = wide ? 420 : 340;
    const reach = (arm) => (arm.scatter.halves ? arm.scatter.halves[1] : 0);
    const ys = [...routed.flatMap((arm) => [arm.bits - reach(arm), arm.bits + reach(arm), ...arm.scatter.seeds.map((s) => s[1])]), ...dense.map((arm) => arm.bits)];
    const xs = routed.flatMap((arm) => [arm.scatter.x + (arm.scatter.halves?.[0] ?? 0), ...arm.scatter.seeds.map((s) => s[0])]);
    const [low, high, right] = [Math.min(...ys), Math.max(...ys), Math.max(0.02, Math.max(...xs) * 1.08)];
    const room = 0.06 * (high - low) || 0.01;
    const xTicks = [0, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 15, 30, 60].reduce((ticks, tick) =>
      (tick <= right && (!ticks.length || Math.sqrt(tick) - Math.sqrt(ticks.at(-1)) > (wide ? 0.07 : 0.12) * Math.sqrt(right)) ? [...ticks, tick] : ticks), []);
    const { svg, X, Y, inner } = frame(place, {
      height, x: [0, right], y: [low - room, high + room], xTicks, xShown: String, root: true,
      xLabel: wide ? "MaxVio (0 is balanced; square-root scale)" : "MaxVio (square-root scale)", yLabel: data.bits,
      right: dense.length && wide ? roomFor(dense) : 14, label: `${data.bits} against MaxVio, one point for each arm`,
    });
    const front = data.front.map(([x, y], i) => `${i ? `H${X(x)}V` : `M${X(x)} `}${Y(y)}`).join("");
    if (arms.length === data.arms.length || data.front.length > 1)
      make("path", { d: front, fill: "none", class: "axis", "stroke-width": 1.5, "stroke-dasharray": "2 3" }, svg);
    for (const arm of dense)
      make("line", { x1: inner.left, x2: inner.right, y1: Y(arm.bits), y2: Y(arm.bits), style: `stroke:${colourOf(arm)}`, "stroke-width": 1.5 }, svg);
    const marks = [];
    data.front.forEach(([x, y], i) => {
      if (!i) return;
      const before = data.front[i - 1];
      marks.push([X(before[0]), Y(before[1]) - 2, X(x), Y(before[1]) + 2], [X(x) - 2, Y(before[1]), X(x) + 2, Y(y)]);
    });
    for (const arm of dense) marks.push([inner.left, Y(arm.bits) - 2, inner.right, Y(arm.bits) + 2]);
    for (const arm of routed) {
      const { x, y, halves, seeds } = arm.scatter, style = `stroke:${colourOf(arm)}`;
      if (halves) {
        const ends = [X(Math.max(0, x - halves[0])), X(x + halves[0]), Y(y + halves[1]), Y(y - halves[1])];
        make("path", { d: `M${ends[0]} ${Y(y)}H${ends[1]}M${X(x)} ${ends[2]}V${ends[3]}`, style, "stroke-width": 1.3, opacity: 0.6, fill: "none" }, svg);
        marks.push([ends[0], Y(y) - 2, ends[1], Y(y) + 2], [X(x) - 2, ends[2], X(x) + 2, ends[3]]);
      }
      for (const [sx, sy] of seeds) make("circle", { cx: X(sx), cy: Y(sy), r: 2.5, style: `fill:${colourOf(arm)}`, opacity: 0.45 }, svg);
      for (const [sx, sy] of seeds) marks.push([X(sx) - 3, Y(sy) - 3, X(sx) + 3, Y(sy) + 3]);
      marks.push([X(x) - 6, Y(y) - 6, X(x) + 6, Y(y) + 6]);
    }
    const points = routed.map((arm) => ({ arm, x: X(arm.scatter.x), y: Y(arm.bits) }));
    for (const { arm, x, y } of points) {
      const mark = make("path", { d: SHAPES[arm.marker], transform: `translate(${x} ${y}) scale(1.15)`, style: `fill:${colourOf(arm)};stroke:var(--ground)`, "stroke-width": 1 }, svg);
      mark.onpointermove = (event) => showTip(event, arm.name, [[data.bits, arm.bits.toFixed(4)], ["MaxVio", arm.scatter.x.toFixed(3)], ["seeds", String(arm.scatter.seeds.length)]]);
      mark.onpointerleave = hideTip;
    }
    if (points.length <= 24)
      beside(points, inner, marks).forEach((box, i) => make("text", { class: "name", x: box[0], y: box[3] - 3, style: `fill:${inkOf(points[i].arm)}` }, svg, cut(points[i].arm.name)));
    if (wide) nameEnds(svg, dense.map((arm) => ({ arm, x: inner.right, y: Y(arm.bits) })), inner);
    else dense.sort((a, b) => b.bits - a.bits).forEach((arm, i) => make("text", { class: "name", x: inner.right - 4, y: Y(arm.bits) + (i && i === dense.length - 1 ? 14 : -5), // the lowest one's name is below it
      "text-anchor": "end", style: `fill:${inkOf(arm)}` }, svg, cut(arm.name)));
  }
  redraws.push(draw);
})();
