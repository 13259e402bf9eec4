"use strict";
const run = JSON.parse(document.getElementById("run").textContent);
const $ = id => document.getElementById(id), N = run.nodes, END = Math.max(run.end, 1);
const [UP, DOWN, ASLEEP, STALLED, ABSENT, GONE, DRAINING, LYING, CLOGGED] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const css = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
let colour = {};
const paint = () => { for (const c of ["ink", "dim", "line", "card", "accent", "up", "bad", "asleep", "stalled", "gone", "draining", "lying", "cut", "side"]) colour[c] = css(c); };
const clock = us => { const s = us / 1e6, m = Math.floor(s / 60), h = Math.floor(m / 60), r = (s % 60).toFixed(1).padStart(4, "0"); return h ? h + ":" + String(m % 60).padStart(2, "0") + ":" + r : m + ":" + r; };

// The state at a time: everything that happened up to it, in order.
let t = 0, at = [0, 0, 0], is, side, on, last, running, net, moves;
function reset() { at = [0, 0, 0]; is = new Uint16Array(N); on = Array.from({ length: N }, () => new Set()); last = new Int32Array(run.replicas.length).fill(-1); running = new Int32Array(run.replicas.length); net = null; side = null; moves = []; }
function seek(to) {
  to = Math.min(Math.max(to, 0), END);
  if (!is || to < t) reset();
  t = to;
  const ne = run.nodeEvents, re = run.replicaEvents;
  for (let i = at[0]; i < ne.length && ne[i] <= t; i += 3, at[0] = i) is[ne[i + 1]] = ne[i + 2];
  for (let i = at[1]; i < re.length && re[i] <= t; i += 4, at[1] = i) {
    const r = re[i + 1], n = re[i + 2];
    if (!re[i + 3]) { if (on[n].delete(r)) running[r]--; continue; }
    if (!on[n].has(r)) { on[n].add(r); running[r]++; }
    if (last[r] >= 0 && last[r] !== n) moves.push([re[i], r, last[r], n]);
    last[r] = n;
  }
  for (; at[2] < run.nets.length && run.nets[at[2]].us <= t; at[2]++) net = run.nets[at[2]];
  side = null;
  if (net && net.sides) { side = new Uint8Array(N); net.sides.forEach((s, k) => s.forEach(n => { side[n] = k + 1; })); }
  show();
}

// Where nodes are: at their regions, on a ring, or in a grid.
let W = 0, H = 0, X, Y, R = 4, regions = [];
function layout() {
  const c = $("world"), d = devicePixelRatio || 1;
  W = c.clientWidth; H = c.clientHeight; c.width = W * d; c.height = H * d; c.getContext("2d").setTransform(d, 0, 0, d, 0, 0);
  X = new Float32Array(N); Y = new Float32Array(N); regions = [];
  const top = 14, bottom = W < 600 ? 64 : 46, h = H - top - bottom;
  if (run.at) return places(top, h);
  if (N <= 60) {
    R = Math.max(5, Math.min(15, Math.min(W, h) * 1.2 / N));
    const a = Math.min(W / 2 - 80, h * .75), b = h / 2 - R * 2 - 16;
    for (let i = 0; i < N; i++) { const p = 2 * Math.PI * i / N - Math.PI / 2; X[i] = W / 2 + a * Math.cos(p); Y[i] = top + h / 2 + b * Math.sin(p); }
    return;
  }
  const cols = Math.ceil(Math.sqrt(N * W / h)), rows = Math.ceil(N / cols), g = Math.min((W - 30) / cols, h / rows);
  R = Math.max(1, Math.min(9, g * .32));
  for (let i = 0; i < N; i++) { X[i] = W / 2 + (i % cols - (cols - 1) / 2) * g; Y[i] = top + h / 2 + (Math.floor(i / cols) - (rows - 1) / 2) * g; }
}
function places(top, h) {
  const members = run.regions.map(() => []);
  for (let i = 0; i < N; i++) members[run.at[i]].push(i);
  const gap = Math.sqrt(.22 * W * h / N / Math.PI); R = Math.max(1, Math.min(8, gap * .62));
  const lats = run.regions.map(r => r.lat), lo = Math.min(...lats) - 6, hi = Math.max(...lats) + 6;
  run.regions.forEach((r, k) => { if (members[k].length) regions.push({ name: r.name, n: members[k], x: (r.lon + 140) / 310 * W, y: top + (hi - r.lat) / (hi - lo) * h, r: gap * Math.sqrt(members[k].length) + R + 7 }); });
  for (let turn = 0; turn < 300; turn++) for (const a of regions) {
    for (const b of regions) {
      if (a === b) continue;
      const dx = b.x - a.x || .1, dy = b.y - a.y || .1, dist = Math.hypot(dx, dy), over = a.r + b.r + 8 - dist;
      if (over > 0) { const f = over / dist / 4; a.x -= dx * f; a.y -= dy * f; b.x += dx * f; b.y += dy * f; }
    }
    a.x = Math.min(Math.max(a.x, a.r + 4), W - a.r - 4); a.y = Math.min(Math.max(a.y, top + a.r), top + h - a.r - 4);
  }
  for (const g of regions) g.n.forEach((n, k) => { const p = gap * Math.sqrt(k + .5), q = k * 2.39996; X[n] = g.x + p * Math.cos(q); Y[n] = g.y + p * Math.sin(q); });
}

// A node by its state: no two look alike without colour.
function glyph(c, x, y, r, s) {
  const cross = r => { c.beginPath(); c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x + r, y - r); c.lineTo(x - r, y + r); c.stroke(); };
  c.lineWidth = Math.max(1, r / 4);
  if (s & GONE) { c.strokeStyle = colour.gone; cross(r * .75); return; }
  if (s & ABSENT || !s) { c.fillStyle = colour.line; c.beginPath(); c.arc(x, y, Math.max(.7, r * .4), 0, 7); c.fill(); return; }
  if (!(s & UP)) { c.strokeStyle = colour.bad; c.beginPath(); c.arc(x, y, r * .85, 0, 7); c.stroke(); cross(r * .45); return; }
  if (s & ASLEEP) { c.strokeStyle = colour.asleep; c.beginPath(); c.arc(x, y, r * .85, 0, 7); c.moveTo(x - r * .5, y); c.lineTo(x + r * .5, y); c.stroke(); return; }
  c.beginPath();
  if (s & LYING) { c.fillStyle = colour.lying; c.moveTo(x, y - r * 1.2); c.lineTo(x + r * 1.2, y); c.lineTo(x, y + r * 1.2); c.lineTo(x - r * 1.2, y); }
  else if (s & DRAINING) { c.fillStyle = colour.draining; c.moveTo(x - r, y - r * .8); c.lineTo(x + r, y - r * .8); c.lineTo(x, y + r); }
  else if (s & STALLED) { c.fillStyle = colour.stalled; c.rect(x - r * .8, y - r * .8, r * 1.6, r * 1.6); }
  else { c.fillStyle = colour.up; c.arc(x, y, r, 0, 7); }
  c.fill();
  if (s & CLOGGED) { c.strokeStyle = colour.cut; c.lineWidth = Math.max(1, r / 3); c.beginPath(); c.arc(x, y, r * 1.5, 0, 7); c.stroke(); }
}
const hue = r => { let h = 7; for (const ch of run.replicas[r].split("/")[0]) h = (h * 31 + ch.codePointAt(0)) % 9973; return "hsl(" + h * 137.5 % 360 + " 62% 52%)"; };
const hues = run.replicas.map((_, r) => hue(r));
function hull(ps) {
  ps.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const half = list => { const o = []; for (const p of list) { while (o.length > 1 && (o[o.length - 1][0] - o[o.length - 2][0]) * (p[1] - o[o.length - 2][1]) - (o[o.length - 1][1] - o[o.length - 2][1]) * (p[0] - o[o.length - 2][0]) <= 0) o.pop(); o.push(p); } o.pop(); return o; };
  return half(ps).concat(half(ps.slice().reverse()));
}
let speed = 5;
function draw() {
  const c = $("world").getContext("2d");
  c.clearRect(0, 0, W, H);
  for (const g of regions) {
    c.fillStyle = colour.line; c.globalAlpha = .28; c.beginPath(); c.arc(g.x, g.y, g.r - 3, 0, 7); c.fill(); c.globalAlpha = 1;
    c.fillStyle = colour.dim; c.font = "600 11px system-ui"; c.textAlign = "center"; c.fillText(g.name, g.x, g.y - g.r + 1 < 12 ? g.y + g.r + 7 : g.y - g.r + 1);
  }
  if (net) {
    c.strokeStyle = colour.cut; c.lineWidth = 1; c.globalAlpha = .5;
    for (const [a, b] of (net.cuts || []).slice(0, 400)) { c.beginPath(); c.moveTo(X[a], Y[a]); c.lineTo(X[b], Y[b]); c.stroke(); }
    c.globalAlpha = 1;
    for (const s of net.sides || []) {
      if (s.length < N / 2 && s.length > 2 && N <= 60 && !regions.length) { // a hull says something where nodes are few
        const h = hull(s.map(n => [X[n], Y[n]]));
        c.fillStyle = c.strokeStyle = colour.side; c.lineJoin = "round"; c.beginPath(); h.forEach((p, k) => k ? c.lineTo(p[0], p[1]) : c.moveTo(p[0], p[1])); c.closePath();
        c.globalAlpha = .12; c.lineWidth = R * 5; c.fill(); c.stroke(); c.globalAlpha = 1;
      }
      c.strokeStyle = colour.side; c.lineWidth = Math.max(1, R / 3); c.setLineDash(R > 3 ? [R * .7, R * .5] : []);
      for (const n of s) { c.beginPath(); c.arc(X[n], Y[n], R * (R > 3 ? 1.75 : 1.3), 0, 7); c.stroke(); }
      c.setLineDash([]);
    }
  }
  for (let i = 0; i < N; i++) {
    glyph(c, X[i], Y[i], R, is[i]);
    if (!on[i].size || R < 2.5) continue;
    let k = 0; const m = Math.max(1.6, R * .36), many = Math.min(on[i].size, 12);
    for (const r of on[i]) {
      if (k >= many) break;
      const p = 2 * Math.PI * k++ / Math.max(many, 6) - Math.PI / 2, q = R >= 5 ? R + m + 2 : R * .3;
      c.fillStyle = hues[r]; c.fillRect(X[i] + q * Math.cos(p) - m, Y[i] + q * Math.sin(p) - m, 2 * m, 2 * m);
    }
  }
  if (N <= 60 && !regions.length) { c.fillStyle = colour.dim; c.font = "11px system-ui"; c.textAlign = "center"; for (let i = 0; i < N; i++) { const dx = X[i] - W / 2, dy = Y[i] - H / 2, l = Math.hypot(dx, dy) || 1; c.fillText("n" + i, X[i] + dx / l * (R * 2 + 16), Y[i] + 4 + dy / l * (R * 2 + 10)); } }
  const span = Math.min(4e6, Math.max(1e6, speed * 5e5));
  for (let k = moves.length - 1; k >= 0 && k > moves.length - 300; k--) {
    const [when, r, a, b] = moves[k], f = (t - when) / span;
    if (f > 1) continue;
    const e = 1 - (1 - f) ** 3, cx = (X[a] + X[b]) / 2, cy = (Y[a] + Y[b]) / 2 - Math.hypot(X[b] - X[a], Y[b] - Y[a]) * .18;
    const px = (1 - e) ** 2 * X[a] + 2 * (1 - e) * e * cx + e * e * X[b], py = (1 - e) ** 2 * Y[a] + 2 * (1 - e) * e * cy + e * e * Y[b];
    c.strokeStyle = hues[r]; c.globalAlpha = .75 * (1 - f); c.lineWidth = 1.5; c.beginPath(); c.moveTo(X[a], Y[a]); c.quadraticCurveTo(cx, cy, X[b], Y[b]); c.stroke();
    c.globalAlpha = 1; c.fillStyle = hues[r]; c.fillRect(px - 4, py - 4, 8, 8);
  }
}

// Beside the world: counts, the list of events, the timeline and the charts.
const events = run.steps.map(s => ({ us: s.us, text: s.text, node: s.node })).concat(run.broken.map(b => ({ us: b.us, text: b.of + ": " + b.what, fail: true }))).sort((a, b) => a.us - b.us);
const SHOWN = 600;
function list() {
  const ol = $("events"), rest = events.length - SHOWN, fails = new Set(events.filter(e => e.fail));
  const some = rest > 0 ? events.filter((e, i) => fails.has(e) || i < SHOWN) : events;
  for (const e of some) {
    const li = document.createElement("li"), b = document.createElement("button"), w = document.createElement("time"), m = document.createElement("span"), x = document.createElement("span");
    w.textContent = clock(e.us); m.textContent = e.fail ? "◆" : "▸"; x.textContent = e.text + (e.node >= 0 ? " → n" + e.node : "");
    if (e.fail) { m.className = x.className = "fail"; }
    b.append(w, m, x); b.onclick = () => { pause(); seek(e.us); }; li.append(b); ol.append(li); e.li = li;
  }
  if (rest > 0) { const li = document.createElement("li"); li.className = "left"; li.textContent = "and " + rest + " more steps, on the timeline"; ol.append(li); }
  if (!events.length) { const li = document.createElement("li"); li.className = "keys"; li.textContent = "no step, and nothing broken"; ol.append(li); }
}
let nowAt = -1;
function show() {
  let up = 0, down = 0, run1 = 0, failed = 0;
  for (let i = 0; i < N; i++) { if (is[i] & ABSENT) continue; if (is[i] & UP && !(is[i] & ASLEEP)) up++; else down++; }
  for (const n of running) run1 += n;
  for (const b of run.broken) if (b.us <= t) failed++;
  $("up").textContent = up; $("down").textContent = down; $("replicas").textContent = run1; $("failures").textContent = failed; $("failures").className = failed ? "bad" : "";
  $("sides").textContent = net && net.sides ? net.sides.length + 1 : 1; $("loss").textContent = net ? +(net.loss * 100).toFixed(2) + " %" : "0 %";
  $("time").textContent = clock(t) + " / " + clock(END); $("slider").value = 1000 * t / END;
  let k = -1; for (let i = 0; i < events.length && events[i].us <= t; i++) k = i;
  if (k !== nowAt) {
    events.forEach((e, i) => { if (e.li) e.li.className = i === k ? "now" : i > k ? "later" : ""; });
    const li = k >= 0 && events[k].li; if (li) { const ol = $("events"); if (li.offsetTop < ol.scrollTop + ol.offsetTop || li.offsetTop > ol.scrollTop + ol.offsetTop + ol.clientHeight - 24) ol.scrollTop = li.offsetTop - ol.offsetTop - ol.clientHeight / 2; }
    nowAt = k;
  }
  draw(); cursors();
}
function flat(id) { const c = $(id), d = devicePixelRatio || 1, w = c.clientWidth, h = c.clientHeight; c.width = w * d; c.height = h * d; const g = c.getContext("2d"); g.setTransform(d, 0, 0, d, 0, 0); return [g, w, h]; }
const still = {};
function keep(id) { const c = $(id); still[id] = document.createElement("canvas"); still[id].width = c.width; still[id].height = c.height; if (c.width && c.height) still[id].getContext("2d").drawImage(c, 0, 0); }
const classColours = ["#4477aa", "#ee9944", "#228866", "#aa4477", "#66aacc", "#bbaa33", "#777777", "#cc5544"];
function charts() {
  let [g, w, h] = flat("marks");
  for (const e of events) { const x = 8 + (w - 16) * e.us / END; g.fillStyle = e.fail ? colour.bad : colour.dim; g.beginPath(); if (e.fail) { g.moveTo(x, 1); g.lineTo(x + 6, 8); g.lineTo(x, 15); g.lineTo(x - 6, 8); } else { g.moveTo(x - 4, 10); g.lineTo(x + 4, 10); g.lineTo(x, 18); } g.fill(); }
  keep("marks");
  const tr = run.traffic, C = run.classes.length;
  [g, w, h] = flat("traffic");
  // One column of pixels each: the mean of what falls into it.
  const cols = Math.max(1, Math.min(w, tr.length)), sums = Array.from({ length: cols }, () => new Float64Array(C + 1)), worst = new Float64Array(cols), open = new Float64Array(cols);
  tr.forEach((s, i) => { const k = Math.min(cols - 1, Math.floor(s.us / END * cols)), d = (s.us - (i ? tr[i - 1].us : 0)) / 1e6 || 1; s.messages.forEach((m, c) => { sums[k][c] += m / d; }); sums[k][C]++; worst[k] = Math.max(worst[k], s.slowest); open[k] = Math.max(open[k], s.open); });
  let peak = 1; for (const s of sums) { if (s[C]) { let v = 0; for (let c = 0; c < C; c++) v += s[c] / s[C]; peak = Math.max(peak, v); } }
  let prev = null;
  sums.forEach((s, k) => { if (!s[C]) { if (!prev) return; s = prev; } prev = s; let y = h; for (let c = 0; c < C; c++) { const v = s[c] / s[C] / peak * (h - 12); g.fillStyle = classColours[c % 8]; g.fillRect(k * w / cols, y - v, w / cols + .6, v); y -= v; } });
  g.fillStyle = colour.dim; g.font = "11px system-ui"; g.fillText(Math.round(peak).toLocaleString("en"), 2, 10); keep("traffic");
  [g, w, h] = flat("spread");
  let most = 1e5; for (const v of worst) most = Math.max(most, v);
  const low = 4, log = v => Math.max(0, Math.log10(Math.max(v, 1)) - low) / Math.max(1, Math.ceil(Math.log10(most)) - low);
  g.font = "11px system-ui"; g.textAlign = "left";
  for (let p = low; p <= Math.ceil(Math.log10(most)); p++) { const y = h - 2 - log(10 ** p) * (h - 12); g.fillStyle = colour.line; g.fillRect(34, y, w, 1); g.fillStyle = colour.dim; if (p > low && (Math.ceil(Math.log10(most)) - p) % 2 === 0) g.fillText(p >= 6 ? 10 ** (p - 6) + " s" : 10 ** (p - 3) + " ms", 0, Math.min(y + 5, h - 2)); }
  g.fillStyle = colour.accent; worst.forEach((v, k) => { if (v) { const x = k * w / cols, y = h - 2 - log(v) * (h - 12); g.fillRect(x, y, Math.max(1.5, w / cols - .5), h - 2 - y); } });
  keep("spread");
}
function cursors() {
  for (const id of ["marks", "traffic", "spread"]) {
    const c = $(id), g = c.getContext("2d"), d = devicePixelRatio || 1; if (!still[id] || !c.width) continue;
    g.setTransform(1, 0, 0, 1, 0, 0); g.clearRect(0, 0, c.width, c.height); g.drawImage(still[id], 0, 0); g.setTransform(d, 0, 0, d, 0, 0);
    const pad = id === "marks" ? 8 : 0; g.fillStyle = colour.ink; g.fillRect(pad + (c.clientWidth - 2 * pad) * t / END - .75, 0, 1.5, c.clientHeight);
  }
}
function legend() {
  const ever = run.nodeEvents.filter((_, i) => i % 3 === 2).reduce((a, b) => a | b, 0), ul = $("legend"); ul.replaceChildren();
  for (const [s, name] of [[UP, "up"], [DOWN, "down"], [UP | ASLEEP, "asleep"], [UP | STALLED, "stalled"], [GONE, "gone for good"], [ABSENT, "not there yet"], [UP | DRAINING, "draining"], [UP | LYING, "lies"], [UP | CLOGGED, "clogged"]]) {
    if (s !== UP && !(ever & (s & ~UP))) continue;
    const li = document.createElement("li"), c = document.createElement("canvas"), d = devicePixelRatio || 1; c.width = c.height = 14 * d; const g = c.getContext("2d"); g.scale(d, d); glyph(g, 7, 7, 4.4, s); li.append(c, name); ul.append(li);
  }
  const note = text => { const li = document.createElement("li"); li.textContent = text; ul.append(li); };
  if (run.replicas.length) note("■ a replica, coloured by instance");
  if (run.nets.some(n => n.sides)) note("◌ on the other side of a split");
}

let playing = false, before = 0;
function pause() { playing = false; $("play").textContent = "▶ play"; }
function play() { if (t >= END) seek(0); playing = true; before = 0; $("play").textContent = "❚❚ pause"; requestAnimationFrame(frame); }
function frame(ms) { if (!playing) return; if (before) { seek(t + (ms - before) * 1000 * speed); if (t >= END) pause(); } before = ms; requestAnimationFrame(frame); }
function hop(by) { pause(); const e = by > 0 ? events.find(e => e.us > t) : events.filter(e => e.us < t).pop(); seek(e ? e.us : by > 0 ? END : 0); }
const fromHash = () => { const m = /^#t=([0-9.]+)$/.exec(location.hash); if (m) { pause(); seek(m[1] * 1e6); } };
$("play").onclick = () => playing ? pause() : play();
$("speed").onchange = e => { speed = +e.target.value; };
$("slider").oninput = e => { pause(); seek(e.target.value / 1000 * END); };
$("prev").onclick = () => hop(-1); $("next").onclick = () => hop(1);
$("copy").onclick = async () => { const text = $("replay").textContent; try { await navigator.clipboard.writeText(text); $("copy").textContent = "copied"; } catch { getSelection().selectAllChildren($("replay")); $("copy").textContent = "selected"; } };
for (const id of ["marks", "traffic", "spread"]) $(id).onclick = e => {
  pause(); const pad = id === "marks" ? 8 : 0, w = $(id).clientWidth - 2 * pad; let to = (e.offsetX - pad) / w * END;
  if (id === "marks") { let best = null; for (const v of events) { const d = Math.abs(v.us - to); if (d < 9 / w * END && (!best || d < Math.abs(best.us - to) || v.fail && !best.fail)) best = v; } if (best) to = best.us; }
  seek(to);
};
$("world").onpointermove = $("world").onpointerdown = e => {
  let best = -1, near = Math.max(R * 2, 9) ** 2; for (let i = 0; i < N; i++) { const d = (X[i] - e.offsetX) ** 2 + (Y[i] - e.offsetY) ** 2; if (d < near) { near = d; best = i; } }
  const tip = $("tip"); tip.hidden = best < 0; if (best < 0) return;
  const names = run.states.filter((_, k) => is[best] >> k & 1), mine = [...on[best]].map(r => run.replicas[r]);
  tip.textContent = "n" + best + (run.at ? " · " + run.regions[run.at[best]].name : "") + " · " + (names.join(", ") || "–") + (side && side[best] ? " · other side" : "") + (mine.length ? "\n" + mine.slice(0, 12).join(", ") + (mine.length > 12 ? ", …" : "") : "");
  tip.style.left = Math.min(e.offsetX + 14, W - tip.offsetWidth - 6) + "px"; tip.style.top = Math.min(e.offsetY + 14, H - tip.offsetHeight - 6) + "px";
};
$("world").onpointerleave = () => { $("tip").hidden = true; };
addEventListener("keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT" || e.target.tagName === "BUTTON" && e.key === " ") return;
  const d = e.shiftKey ? 1e7 : 1e6, go = { " ": () => $("play").click(), ArrowLeft: () => { pause(); seek(t - d); }, ArrowRight: () => { pause(); seek(t + d); }, n: () => hop(1), p: () => hop(-1), Home: () => { pause(); seek(0); }, End: () => { pause(); seek(END); } }[e.key];
  if (go) { e.preventDefault(); go(); }
});
addEventListener("hashchange", fromHash);
function whole() { paint(); layout(); legend(); charts(); show(); }
let due = 0; addEventListener("resize", () => { cancelAnimationFrame(due); due = requestAnimationFrame(whole); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", whole);
$("classes").append(...run.classes.map((c, k) => { const s = document.createElement("span"); s.style.color = classColours[k % 8]; s.textContent = "■ " + c; return s; }));
reset(); list(); paint(); layout(); legend(); charts(); seek(0); fromHash();
document.documentElement.dataset.ready = "true";
