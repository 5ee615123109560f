// Curves of quality, its difference from the baseline, or MaxVio over tokens, FLOPs or seconds.
(() => {
  const place = document.getElementById("curves-chart");
  if (!place) return;
  const state = { by: data.by, of: "bits_per_byte" };
  const labels = { bits_per_byte: data.bits, difference: `${data.bits} minus ${data.baseline}'s`, max_vio: "MaxVio" };

  const drawn = () => visible()
    .map((arm) => ({ arm, curve: arm.curves[state.by]?.[state.of] }))
    .filter(({ curve }) => curve && curve.x.length > 1);

  function limits(lines) { // without the steep start, where the arms look alike
    let low = Infinity, high = -Infinity;
    for (const { curve } of lines) {
      const from = curve.x.at(-1) * (state.of === "max_vio" ? 0 : 0.25);
      curve.x.forEach((x, i) => {
        if (x < from) return;
        low = Math.min(low, (curve.low ?? curve.mean)[i]);
        high = Math.max(high, (curve.high ?? curve.mean)[i]);
      });
    }
    if (state.of !== "bits_per_byte") { low = Math.min(low, 0); high = Math.max(high, 0); }
    const room = 0.05 * (high - low) || 0.01;
    return [low - room, high + room];
  }

  function at(curve, x) {
    const i = curve.x.findIndex((next) => next >= x);
    if (i < 0 || x < curve.x[0]) return null;
    if (i === 0) return curve.mean[0];
    const share = (x - curve.x[i - 1]) / (curve.x[i] - curve.x[i - 1]);
    return curve.mean[i - 1] + share * (curve.mean[i] - curve.mean[i - 1]);
  }

  function draw() {
    const lines = drawn();
    if (!lines.length) {
      place.replaceChildren(make("p", { class: "soft" }, null, "No data for the arms shown."));
      return;
    }
    const wide = place.clientWidth > 620, height = wide ? 420 : 320;
    const end = Math.max(...lines.map(({ curve }) => curve.x.at(-1)));
    const zero = data.arms.find((arm) => arm.name === data.baseline);
    const base = state.of === "difference" && shown.has(zero.name) ? [{ arm: zero, curve: { x: [0, end], mean: [0, 0] } }] : [];
    const all = lines.concat(base);
    const { svg, X, Y, invert, inner } = frame(place, {
      height, x: [0, end], y: limits(lines), xLabel: data.axes[state.by], yLabel: labels[state.of],
      right: wide ? roomFor(all.map(({ arm }) => arm)) : 12,
      label: `Curves of ${labels[state.of]} against ${data.axes[state.by]}, one for each arm`,
    });
    const hole = make("clipPath", { id: "curves-hole" }, svg);
    make("rect", { x: inner.left, y: inner.top, width: inner.right - inner.left, height: inner.bottom - inner.top }, hole);
    const clip = make("g", { "clip-path": "url(#curves-hole)" }, svg);
    const path = (xs, ys) => xs.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(ys[i]).toFixed(1)}`).join("");
    for (const { arm, curve } of all)
      if (curve.low) {
        const back = path([...curve.x].reverse(), [...curve.high].reverse()).replace("M", "L");
        make("path", { d: `${path(curve.x, curve.low)}${back}Z`, style: `fill:${colourOf(arm)}`, opacity: 0.12 }, clip);
      }
    for (const { arm, curve } of all)
      make("path", { d: path(curve.x, curve.mean), fill: "none", style: `stroke:${colourOf(arm)}`, "stroke-width": 2, "stroke-dasharray": arm.dash.map((d) => d * 1.6).join(" ") }, clip);
    if (wide && all.length <= 24)
      nameEnds(svg, all.map(({ arm, curve }) => ({ arm, x: X(curve.x.at(-1)), y: Math.max(inner.top, Math.min(inner.bottom, Y(curve.mean.at(-1)))) })), inner);
    const cross = make("line", { class: "axis", y1: inner.top, y2: inner.bottom, visibility: "hidden" }, svg);
    svg.onpointermove = (event) => {
      const box = svg.getBoundingClientRect();
      const x = Math.max(0, Math.min(end, invert(event.clientX - box.left)));
      const values = all.map(({ arm, curve }) => [arm, at(curve, x)]).filter(([, y]) => y !== null);
      if (!values.length) return svg.onpointerleave();
      cross.setAttribute("x1", X(x)); cross.setAttribute("x2", X(x)); cross.setAttribute("visibility", "visible");
      values.sort((a, b) => a[1] - b[1]);
      const digits = state.of === "max_vio" ? 2 : 4;
      showTip(event, `${short(x)} ${data.axes[state.by]}`, values.slice(0, 14).map(([arm, y]) => [cut(arm.name), minus(y.toFixed(digits)), arm]));
    };
    svg.onpointerleave = () => { hideTip(); cross.setAttribute("visibility", "hidden"); };
  }

  redraws.push(draw);
  choose("curves-by", (value) => {
    state.by = value;
    document.querySelectorAll("#curves .made code").forEach((code) => { code.textContent = code.textContent.replace(/--by \w+/, `--by ${value}`); });
    draw();
  });
  choose("curves-of", (value) => { state.of = value; draw(); });
})();
