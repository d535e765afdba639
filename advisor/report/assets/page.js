"use strict";
// Draws the charts from the data in the page with Observable Plot and moves the what-if tables. Computes nothing but
// where things are drawn: every figure comes from report.json.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const color = (name) => `var(--${name})`;
  const PARTS = { weights: "weights", "KV cache": "kv", activations: "activations", runtime: "runtime", free: "page" };

  // Three significant figures, thousands separated: the same as the tables that came with the page.
  function figure(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const rounded = Number(value.toExponential(digits - 1));
    const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(rounded))));
    return rounded.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  }
  const whole = (value) => value.toLocaleString("en-US");

  // An axis label under the ticks instead of among them.
  const below = { labelAnchor: "center", labelArrow: "none", labelOffset: 36 };

  function plot(holder, options) {
    const width = Math.max(240, Math.floor(holder.clientWidth || 640));
    const drawn = Plot.plot({
      width,
      marginBottom: 40,
      color: { type: "identity" },
      style: { fontFamily: "inherit", fontSize: "12px", background: "none" },
      ...options,
    });
    drawn.setAttribute("aria-hidden", "true");
    holder.append(drawn);
  }

  // One cell for each item, all in place before the first is drawn: a chart is as wide as its cell.
  function cells(holder, items) {
    const made = items.map((item) => [document.createElement("div"), item]);
    holder.append(...made.map(([cell]) => cell));
    return made;
  }

  function holders(name) {
    return document.querySelectorAll(`[data-chart="${name}"]`);
  }

  function stacked(rows) {
    const ends = new Map();
    return rows.map((row) => {
      const from = ends.get(row.name) ?? 0;
      ends.set(row.name, from + row.gib);
      return { ...row, from, to: from + row.gib };
    });
  }

  function memory(holder, { rows, capacity }) {
    const bars = stacked(rows);
    const names = [...new Set(rows.map((row) => row.name))];
    const most = Math.max(capacity, ...bars.map((bar) => bar.to));
    const space = Math.max(240, holder.clientWidth || 640) - 70;
    plot(holder, {
      height: 62 + names.length * 30,
      marginLeft: 56,
      marginRight: 14,
      x: { domain: [0, most * 1.01], label: "GiB per GPU", ticks: 6, ...below },
      y: { domain: names, label: null, tickSize: 0, padding: 0.25 },
      marks: [
        Plot.barX(bars, { x1: "from", x2: "to", y: "name", fill: (d) => color(PARTS[d.part]), stroke: color("quiet"), strokeWidth: 0.5 }),
        Plot.text(bars.filter((bar) => (bar.gib / most) * space > 30), {
          x: (d) => (d.from + d.to) / 2, y: "name", text: (d) => figure(d.gib),
          fill: (d) => (d.part === "free" ? color("ink") : color("on-bar")),
        }),
        Plot.ruleX([capacity], { stroke: color("limit"), strokeDasharray: "4,3", strokeWidth: 1.5 }),
      ],
    });
  }

  // The name of a row above it, from the left edge: beside it a phone has no room.
  function named(rows, name, dy) {
    return Plot.text(rows, { frameAnchor: "left", y: name, text: name, dy, dx: -38, fill: color("ink"), stroke: color("page"), strokeWidth: 4 });
  }

  function waterfall(holder, metrics) {
    for (const [cell, { metric, unit, bars, limit }] of cells(holder, metrics)) {
      const kind = { total: "total", better: "better", worse: "worse" };
      const most = Math.max(...bars.flatMap((bar) => [bar.from, bar.to]), limit ?? 0);
      plot(cell, {
        height: 60 + bars.length * 24,
        marginLeft: 58,
        marginRight: 52,
        x: { label: `${metric}, ${unit}`, domain: [0, most], ticks: 3, ...below },
        y: { domain: bars.map((bar) => bar.label), label: null, tickSize: 0 },
        marks: [
          Plot.barX(bars, { x1: "from", x2: "to", y: "label", fill: (d) => color(kind[d.kind]), insetTop: 3, insetBottom: 3 }),
          limit === null ? null : Plot.ruleX([limit], { stroke: color("limit"), strokeDasharray: "4,3", strokeWidth: 1.5 }),
          Plot.text(bars, {
            x: (d) => Math.max(d.from, d.to), y: "label", dx: 5, textAnchor: "start", fill: color("ink"), stroke: color("page"), strokeWidth: 4,
            text: (d) => (d.kind === "total" ? figure(d.to) : `${d.to > d.from ? "+" : "−"}${figure(Math.abs(d.to - d.from), 2)}`),
          }),
        ],
      });
    }
  }

  function limitMarks(limit) {
    if (limit === null || limit === undefined) return [];
    return [
      Plot.ruleX([limit], { stroke: color("limit"), strokeDasharray: "4,3", strokeWidth: 1.5 }),
      Plot.text([limit], { x: (d) => d, frameAnchor: "top", dx: -5, dy: 2, textAnchor: "end", fill: color("limit"), text: () => "limit" }),
    ];
  }

  function options(holder, points, limit, domains) {
    const shade = (d) => (d.mark === "P" || d.chosen ? color("plan") : color("other"));
    plot(holder, {
      height: 300,
      marginLeft: 58,
      marginRight: 20,
      grid: true,
      x: { label: "ITL, ms (less is better)", nice: true, ...below, ...domains?.x },
      y: { label: "output tokens/s", nice: true, ...domains?.y },
      marks: [
        ...limitMarks(limit),
        Plot.dot(points, { x: "itl", y: "rate", r: 9, fill: (d) => (d.mark === "P" || d.chosen ? color("plan") : color("page")), stroke: shade, strokeWidth: 1.5 }),
        Plot.text(points, { x: "itl", y: "rate", text: "mark", fontWeight: 600, fill: (d) => (d.mark === "P" || d.chosen ? color("on-bar") : color("ink")) }),
      ],
    });
  }

  function pareto(holder, { points, limit }) {
    const itl = [...points.map((p) => p.itl), ...(limit ? [limit] : [])];
    const rate = points.map((p) => p.rate);
    const pad = (values) => [Math.max(0, Math.min(...values) - 0.12 * (Math.max(...values) - Math.min(...values) || 1)), Math.max(...values) * 1.06];
    options(holder, points, limit, { x: { domain: pad(itl) }, y: { domain: pad(rate) } });
  }

  function roofline(holder, { points, bandwidth, peaks }) {
    const intensities = points.map((p) => p.flops_per_byte);
    const low = Math.min(1, ...intensities) * 0.8;
    const high = Math.max(...intensities, (peaks.at(-1) * 1000) / bandwidth) * 4;
    const least = Math.min((low * bandwidth) / 1000, ...points.map((p) => p.tflops)) * 0.8;
    const powers = (from, to) => {
      const found = [];
      for (let n = Math.ceil(Math.log10(from)); n <= Math.log10(to); n += 1) found.push(10 ** n);
      return found;
    };
    const roofs = peaks.flatMap((peak) => {
      const ridge = (peak * 1000) / bandwidth;
      return [low, ridge, high].map((x) => ({ peak, x, y: Math.min(peak, (x * bandwidth) / 1000) }));
    });
    plot(holder, {
      height: 300,
      marginLeft: 52,
      marginRight: 24,
      grid: true,
      x: { type: "log", label: "operations per byte of memory traffic", domain: [low, high], ticks: powers(low, high), tickFormat: whole, ...below },
      y: { type: "log", label: "TFLOPS of one GPU", domain: [least, peaks.at(-1) * 1.6], ticks: powers(least, peaks.at(-1)), tickFormat: (d) => figure(d, 1) },
      marks: [
        Plot.line(roofs, { x: "x", y: "y", z: "peak", stroke: color("total"), strokeWidth: 1.5 }),
        Plot.text(peaks, { x: (d) => (d * 1000) / bandwidth, y: (d) => d, text: (d) => `${whole(d)} TFLOPS`, dx: -6, dy: -3, textAnchor: "end", fill: color("quiet") }),
        Plot.dot(points, { x: "flops_per_byte", y: "tflops", r: 5, symbol: (d) => (d.phase === "prefill" ? "square" : "circle"), fill: (d) => color(d.label === "plan" ? "plan" : "other") }),
        ...[["plan", -12], ["baseline", 13]].map(([label, dy]) =>
          Plot.text(points.filter((d) => (d.label === "plan") === (label === "plan")), {
            x: "flops_per_byte", y: "tflops", dy, text: (d) => `${d.label} ${d.phase}`, fill: color("ink"), stroke: color("page"),
          })),
      ],
      symbol: { domain: ["square", "circle"], range: ["square", "circle"] },
    });
  }

  function flips(holder, rows) {
    const facts = [...new Set(rows.map((row) => row.fact))];
    // To both sides of the line, so that two that are near it do not meet.
    const told = (some, textAnchor, dx) => Plot.text(some, {
      x: "factor", y: "fact", dy: -11, dx, textAnchor, text: (d) => (Number.isInteger(d.at) ? whole(d.at) : figure(d.at)), fill: color("ink"), stroke: color("page"), strokeWidth: 4,
    });
    const farthest = Math.max(2, ...rows.map((row) => Math.max(row.factor, 1 / row.factor)));
    plot(holder, {
      height: 76 + facts.length * 44,
      marginTop: 36,
      marginLeft: 40,
      marginRight: 30,
      x: { type: "log", domain: [1 / farthest / 1.3, farthest * 1.3], label: "times what it is now", ticks: holder.clientWidth / 110, ...below, tickFormat: (d) => `×${Number(d.toPrecision(2))}` },
      y: { domain: facts, axis: null },
      marks: [
        Plot.ruleX([1], { stroke: color("plan"), strokeWidth: 2 }),
        named(facts, (fact) => fact, -25),
        Plot.link(rows, { x1: 1, x2: "factor", y: "fact", stroke: color("other") }),
        Plot.dot(rows, { x: "factor", y: "fact", r: 4.5, fill: color("worse") }),
        told(rows.filter((row) => row.factor < 1), "end", -1),
        told(rows.filter((row) => row.factor >= 1), "start", 1),
      ],
    });
  }

  function layers(holder, rows) {
    plot(holder, {
      height: 220,
      marginLeft: 52,
      x: { label: "layer, in the model's order", ...below },
      y: { label: "sensitivity", grid: true },
      marks: [
        Plot.rectY(rows, { x1: (d) => d.index - 0.4, x2: (d) => d.index + 0.4, y: "score", fill: (d) => color(d.kept ? "worse" : "weights") }),
        Plot.ruleY([0], { stroke: color("quiet") }),
      ],
    });
  }

  function accuracy(holder, groups) {
    for (const [cell, { metric, points }] of cells(holder, groups)) {
      const limits = new Set(points.map((point) => point.limit).filter((limit) => limit !== null));
      plot(cell, {
        height: 76 + points.length * 36,
        marginTop: 36,
        marginLeft: 40,
        marginRight: 30,
        x: { label: `${metric}, with 95 % interval`, ticks: cell.clientWidth / 110, ...below },
        y: { domain: points.map((point) => point.label), axis: null },
        marks: [
          Plot.ruleX(limits, { stroke: color("limit"), strokeDasharray: "4,3", strokeWidth: 1.5 }),
          Plot.link(points.filter((p) => p.low !== null), { x1: "low", x2: "high", y: "label", stroke: color("ink"), strokeWidth: 2 }),
          Plot.dot(points, { x: "value", y: "label", r: 4.5, fill: color("plan") }),
          named(points, "label", -13),
        ],
      });
    }
  }

  function predicted(holder, rows) {
    const named = rows.map((row) => ({ ...row, name: `step ${row.number}, ${row.metric}` }));
    plot(holder, {
      height: 64 + rows.length * 26,
      marginLeft: 145,
      marginRight: 40,
      x: { label: "measured ÷ expected", ticks: 5, ...below },
      y: { domain: named.map((row) => row.name), label: null, tickSize: 0 },
      marks: [
        Plot.ruleX([1], { stroke: color("plan"), strokeWidth: 1.5 }),
        Plot.link(named.filter((d) => d.ratio_low !== null), { x1: "ratio_low", x2: "ratio_high", y: "name", stroke: color("other"), strokeWidth: 8, strokeOpacity: 0.4 }),
        Plot.dot(named, { x: "ratio", y: "name", r: 4.5, fill: (d) => color(d.ratio_low !== null && (d.ratio < d.ratio_low || d.ratio > d.ratio_high) ? "worse" : "plan") }),
        Plot.text(named, { x: "ratio", y: "name", dy: -10, text: (d) => figure(d.measured), fill: color("ink") }),
      ],
    });
  }

  // ------------------------------------------------------------------------------------------------ what if

  const AXES = ["concurrency", "isl", "osl"];
  let place = data.grid ? [...data.grid.now] : [];

  function load(index) {
    const { axes } = data.grid;
    return (index[0] * axes.isl.length + index[1]) * axes.osl.length + index[2];
  }

  function breaks(series, at) {
    const { ttft, itl } = data.grid.limits;
    const over = [];
    if (ttft !== null && series.ttft[at] > ttft) over.push("TTFT");
    if (itl !== null && series.itl[at] > itl) over.push("ITL");
    return over;
  }

  function state(series, n, at) {
    if (!series.fits[at]) return "does not fit";
    const said = n === data.grid.best[at] ? ["best here"] : [];
    const over = breaks(series, at);
    if (over.length) said.push(`over the ${over.join(" and ")} limit`);
    return said.join(", ");
  }

  function sentence(at) {
    const { best, plan, series } = data.grid;
    const [c, i, o] = AXES.map((axis, n) => whole(data.grid.axes[axis][place[n]]));
    const where = `At ${c} concurrent, ${i} tokens in and ${o} out`;
    if (best[at] === null) return [`${where} no option here keeps every limit.`, true];
    if (best[at] === plan) return [`${where} the plan is still the best of these.`, false];
    const winner = series[best[at]];
    const ours = plan === null ? null : series[plan].rate[at];
    const against = ours ? ` against ${figure(ours)} of the plan` : "";
    return [`${where} another wins: ${winner.mark}, ${winner.what}, with ${figure(winner.rate[at])} tokens/s${against}.`, true];
  }

  function showLoad() {
    const at = load(place);
    const { series, best, axes } = data.grid;
    AXES.forEach((axis, n) => {
      const input = document.getElementById(`what-if-${axis}`);
      input.value = place[n];
      const text = whole(axes[axis][place[n]]);
      input.setAttribute("aria-valuetext", text);
      document.getElementById(`what-if-${axis}-value`).textContent = text;
    });
    const [text, changed] = sentence(at);
    const answer = document.getElementById("what-if-answer");
    answer.textContent = text;
    answer.classList.toggle("changed", changed);
    series.forEach((one, n) => {
      const row = document.querySelector(`#what-if-table tr[data-series="${n}"]`);
      const needed = one.kv[at] === null ? null : one.weights + one.runtime + one.kv[at] + (one.activations[at] ?? 0);
      const texts = [figure(one.ttft[at]), figure(one.itl[at]), figure(one.rate[at]), one.room[at] === null ? "–" : whole(one.room[at]), figure(needed), state(one, n, at)];
      row.querySelectorAll("td[data-label]").forEach((cell, k) => { cell.textContent = texts[k]; });
      row.classList.toggle("best", n === best[at]);
    });
    document.querySelectorAll("table.winners td").forEach((cell) => {
      cell.classList.toggle("now", Number(cell.dataset.load) === at);
    });
    for (const holder of holders("what-if-memory")) {
      holder.replaceChildren();
      memory(holder, { capacity: series[0].capacity, rows: series.flatMap((one) => parts(one, at)) });
    }
    for (const holder of holders("what-if-options")) {
      holder.replaceChildren();
      const points = series.map((one, n) => ({ mark: one.mark, itl: one.itl[at], rate: one.rate[at], chosen: n === data.grid.plan }));
      options(holder, points.filter((p) => p.itl !== null && p.rate !== null), data.grid.limits.itl, frame());
    }
  }

  function parts(one, at) {
    const used = { weights: one.weights, "KV cache": one.kv[at] ?? 0, activations: one.activations[at] ?? 0, runtime: one.runtime };
    const free = one.capacity - Object.values(used).reduce((a, b) => a + b, 0);
    return Object.entries({ ...used, free }).filter(([, gib]) => gib > 0).map(([part, gib]) => ({ name: one.mark, part, gib }));
  }

  // One frame for all loads, so that what moves is the options and not the axes.
  function frame() {
    const all = (key) => data.grid.series.flatMap((one) => one[key]).filter((value) => value !== null && value > 0);
    const ends = (values) => [Math.min(...values) * 0.85, Math.max(...values) * 1.15];
    const logarithmic = { type: "log", ticks: 4, nice: false, tickFormat: (d) => figure(d, 2) };
    return { x: { ...logarithmic, domain: ends(all("itl")) }, y: { ...logarithmic, domain: ends(all("rate")) } };
  }

  function startWhatIf() {
    document.getElementById("what-if-sliders").hidden = false;
    document.getElementById("what-if-still").hidden = true;
    AXES.forEach((axis, n) => {
      document.getElementById(`what-if-${axis}`).addEventListener("input", (event) => {
        place[n] = Number(event.target.value);
        showLoad();
      });
    });
    document.getElementById("what-if-reset").addEventListener("click", () => {
      place = [...data.grid.now];
      showLoad();
    });
  }

  // ------------------------------------------------------------------------------------------------ start

  const DRAWN = { memory, waterfall, pareto, roofline, flips, layers, accuracy, predicted };

  function draw() {
    for (const [name, chart] of Object.entries(DRAWN)) {
      if (!data[name]) continue;
      for (const holder of holders(name)) {
        holder.replaceChildren();
        chart(holder, data[name]);
      }
    }
    if (data.grid) showLoad();
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open], .long)")];
    opened.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
  let waiting = 0;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  });

  // The figures under a chart are open for readers without JavaScript; with a chart above they may wait.
  document.querySelectorAll("details.figures").forEach((one) => { one.open = false; });
  if (data.grid) startWhatIf();
  draw();
  document.documentElement.dataset.drawn = "yes";
})();
