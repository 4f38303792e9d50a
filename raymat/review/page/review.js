// The review page: one nodule per screen, decisions by key; the next nodule is shown after the decision is stored.

import { COLOURS, COVER, PLANES, SIDES, boxSlice, greySlice, outline, parse, pixelOf, planeShape, voxelAt }
  from "./volume.js";

const $ = (id) => document.getElementById(id);
const WINDOWS = { lung: [-600, 1500], mediastinum: [40, 400] };
const READERS = ["#00d5ff", "#ffd400", "#ff5cf4", "#5dff5d", "#ff9340", "#b79bff"]; // raymat/pictures/view.py
const AHEAD = 2; // nodules fetched ahead
const RETRY_MS = 1000;
const FLICKER_MS = 450;
const MEANS = {
  membership: "the share of a voxel that belongs to the lesion, whatever the density of the lesion",
  calibrated: "membership times the share of pure lesion tissue that the density stands for: ground glass stays below 1",
};

const state = {
  reviewer: localStorage.getItem("raymat reviewer") || "",
  about: null,
  rows: new Map(), // nodule id to its row of /api/nodules
  order: [], // ids that passed the filter when it was set
  at: 0,
  nodule: null,
  slices: [0, 0, 0],
  plane: 0, // the one that the arrow keys scroll
  matte: 0, // the one in the large images
  channel: 0, // of the images, in the nodule's list
  windows: {}, // name of another channel to the [window, level, width] it was last shown in
  window: "lung", level: -600, width: 1500,
  opacity: 0.7, overlay: true, beside: true, contours: true, wide: false, flicker: null,
  busy: false,
  history: [], // ids this reviewer decided on in this session
};

// Talking to the server ---------------------------------------------------------------------------------------------

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401) {
    throw Object.assign(new Error("The server was restarted: open the address that it printed."), { final: true });
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(said.error || `the server answered ${answer.status}`), { final: ![503, 507].includes(answer.status) });
  }
  return answer;
}

const volumes = new Map(); // nodule id to a promise of its parsed volume
function volume(id) {
  if (!volumes.has(id)) {
    const wanted = ask(`/api/volume?nodule=${encodeURIComponent(id)}`).then((a) => a.arrayBuffer()).then(parse);
    wanted.catch(() => volumes.delete(id));
    volumes.set(id, wanted);
  }
  return volumes.get(id);
}

function keepNear() {
  const near = new Set();
  for (let k = -1; k <= AHEAD; k++) if (state.order[state.at + k]) near.add(state.order[state.at + k]);
  for (const id of volumes.keys()) if (!near.has(id)) volumes.delete(id);
  for (const id of near) volume(id).catch(() => {});
}

function say(text, plain = false) {
  $("message").hidden = !text;
  $("message").textContent = text || "";
  $("message").className = plain ? "plain" : "";
}

async function loadRows() {
  const rows = await (await ask(`/api/nodules?reviewer=${encodeURIComponent(state.reviewer)}`)).json();
  state.rows = new Map(rows.map((row) => [row.nodule_id, row]));
}

async function loadProgress() {
  const found = await (await ask("/api/progress")).json();
  const lines = Object.entries(found.reviewers).sort()
    .map(([name, n]) => `<tr><td>${escape(name)}</td><td class="number">${n} of ${found.nodules}</td></tr>`);
  const kappa = (value) => (value === null ? "not defined" : value.toFixed(2));
  const pairs = found.agreement.map((pair) =>
    `<p>${escape(pair.reviewers.join(" and "))}, ${pair.nodules} reviewed by both: keep or reject ` +
    `${Math.round(100 * pair.kept)} % equal, kappa ${kappa(pair.kept_kappa)}; same matte ` +
    `${Math.round(100 * pair.chosen)} %, kappa ${kappa(pair.chosen_kappa)}</p>`);
  $("reviewers").innerHTML = `<table>${lines.join("")}</table>${pairs.join("")}`;
}

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

// Which nodules, and which one ----------------------------------------------------------------------------------------

const FILTERS = {
  all: () => true,
  undecided: (row) => !row.mine,
  second: (row) => !row.mine && row.others_count > 0,
  low: (row) => row.score < Number($("threshold").value),
  rejected: (row) => row.outcome === "rejected",
  against: (row) => row.against_score,
  split: (row) => row.split,
};

async function setFilter(keep) {
  const words = $("search").value.trim().toLowerCase();
  const passes = FILTERS[$("filter").value];
  $("below").style.display = $("filter").value === "low" ? "inline" : "none";
  state.order = [...state.rows.values()].filter(passes)
    .filter((row) => !words || `${row.nodule_id} ${row.patient_id}`.toLowerCase().includes(words))
    .map((row) => row.nodule_id);
  const before = keep ? state.order.indexOf(keep) : -1;
  const undecided = state.order.findIndex((id) => !state.rows.get(id).mine);
  await go(before >= 0 ? before : Math.max(undecided, 0));
}

async function go(at) {
  if (!state.order.length) {
    state.nodule = null;
    document.body.dataset.nodule = "";
    $("nodule").textContent = "no nodule matches this filter";
    $("place").textContent = "";
    $("viewer").style.visibility = "hidden";
    return;
  }
  $("viewer").style.visibility = "visible";
  if (at < 0 || at >= state.order.length) {
    const left = [...state.rows.values()].filter((row) => !row.mine).length;
    say(at < 0 ? "This is the first nodule." : left
      ? `End of the list; ${left} nodules are not yet decided by you.`
      : "All nodules are decided. Thank you.", true);
    return;
  }
  state.at = at;
  const id = state.order[at];
  keepNear();
  let nodule;
  try {
    nodule = await volume(id);
  } catch (error) {
    say(`${id}: ${error.message}`);
    return;
  }
  if (state.order[state.at] !== id) return; // the user has moved to another nodule
  state.nodule = nodule;
  state.slices = [...nodule.centre];
  const chosen = nodule.mattes.findIndex((m) => m.method === (state.rows.get(id).mine || nodule.method));
  const best = nodule.mattes.reduce((b, m, i, all) => (canChoose(m) && m.score > all[b].score ? i : b), 0);
  state.matte = chosen >= 0 ? chosen : best;
  if (state.channel >= nodule.channels.length) setChannel(0, false);
  else if (state.window === "full") setWindow("full", false);
  say("");
  layout();
  describe();
  document.body.dataset.nodule = id;
  if (state.asked) {
    requestAnimationFrame(() => {
      performance.measure("next nodule", { start: state.asked, end: performance.now() });
      state.asked = null;
    });
  }
}

// Decisions -----------------------------------------------------------------------------------------------------------

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
}

// Sends a decision until the server has confirmed it; the same id, so that one sent twice is one.
async function send(nodule, action, method) {
  const body = JSON.stringify({
    decision_id: newId(), nodule_id: nodule.nodule_id, mattes: nodule.mattes_id, kind: nodule.kind,
    reviewer: state.reviewer, action, method,
  });
  for (;;) {
    try {
      const answer = await ask("/api/decisions", {
        method: "POST", headers: { "Content-Type": "application/json" }, body,
      });
      const row = await answer.json();
      state.rows.set(row.nodule_id, row);
      say("");
      return true;
    } catch (error) {
      if (error.final) {
        say(`Not saved. ${error.message}`);
        return false;
      }
      const why = error instanceof TypeError ? "the server does not answer" : error.message;
      say(`Not saved yet: ${why}. Trying again; this nodule stays until it is saved.`);
      await new Promise((wake) => setTimeout(wake, RETRY_MS));
    }
  }
}

// The mattes of the dataset's kind; they stand before the others.
const canChoose = (matte) => ["any", matte.kind].includes(state.nodule.kind);

function choose(key) {
  const { mattes, kind } = state.nodule;
  if (canChoose(mattes[key])) decide("choose", mattes[key].method);
  else say(`Only ${keys(0, mattes.filter(canChoose).length)} choose: in this dataset alpha is of the kind ${kind}.`, true);
}

async function decide(action, method = null) {
  if (state.busy || !state.nodule) return;
  state.busy = true;
  state.asked = performance.now();
  try {
    if (await send(state.nodule, action, method)) {
      state.history.push(state.nodule.nodule_id);
      count();
      await go(state.at + 1);
      describe();
      loadProgress().catch(() => {});
    }
  } finally {
    state.busy = false;
  }
}

async function takeBack() {
  if (state.busy || !state.nodule) return;
  let id = state.nodule.nodule_id;
  if (!state.rows.get(id).mine) {
    while (state.history.length && !state.rows.get(state.history.at(-1))?.mine) state.history.pop();
    if (!state.history.length) {
      say("You have made no decision on this nodule.", true);
      return;
    }
    id = state.history.at(-1);
  }
  state.busy = true;
  try {
    const nodule = await volume(id);
    if (await send(nodule, "withdraw", null)) {
      state.history = state.history.filter((other) => other !== id);
      count();
      const at = state.order.indexOf(id);
      await go(at >= 0 ? at : state.at);
      say(`The decision on ${id} is undone.`, true);
      loadProgress().catch(() => {});
    }
  } finally {
    state.busy = false;
  }
}

// Words and numbers beside the images ---------------------------------------------------------------------------------

function count() {
  const mine = [...state.rows.values()].filter((row) => row.mine).length;
  $("bar").max = state.rows.size;
  $("bar").value = mine;
  $("count").textContent = `${mine} of ${state.rows.size} decided by you`;
}

// "key 5", "keys 1 to 4", "no keys": of a number of mattes in a row.
const keys = (first, count) => {
  if (count < 2) return count ? `key ${first + 1}` : "no keys";
  return `keys ${first + 1} to ${Math.min(9, first + count)}`;
};

const upper = (method) => (method === "reject" ? "rejected" : method.toUpperCase());

function describe() {
  const { nodule } = state;
  if (!nodule) return;
  const row = state.rows.get(nodule.nodule_id);
  count();
  $("nodule").textContent = nodule.nodule_id;
  $("place").textContent = `${state.at + 1} of ${state.order.length}, patient ${nodule.patient_id}`;
  const parts = [row.mine ? `<div class="mine">you: ${escape(upper(row.mine))}</div>` : "<div>not yet decided by you</div>"];
  for (const [name, label] of Object.entries(row.others)) parts.push(`<div>${escape(name)}: ${escape(upper(label))}</div>`);
  if (row.others_count && !row.mine) parts.push(`<div>${row.others_count} other${row.others_count > 1 ? "s" : ""} decided</div>`);
  parts.push(nodule.method
    ? `<div class="score">score: ${escape(upper(nodule.method))}</div>`
    : `<div class="score bad">score: rejected</div><div>${escape(nodule.reason || "")}</div>`);
  for (const { kind, method } of nodule.mattes.filter(isBeside)) {
    parts.push(`<div class="beside">best ${kind}: ${escape(upper(method))}</div>`);
  }
  $("verdict").innerHTML = parts.join("");
  const matte = nodule.mattes[state.matte];
  const { weights, words, low } = state.about.quality;
  $("focused").textContent = `${title(matte, state.matte)}, ${matte.kind}, score ${number(matte.score)}`;
  $("focused").title = MEANS[matte.kind] || "";
  document.querySelectorAll(".keys").forEach((span) => {
    span.textContent = keys(0, nodule.mattes.filter(canChoose).length);
  });
  const terms = Object.entries(matte.terms).map(([name, value]) =>
    `<tr title="${escape(words[name] || "")}"><td class="${value < low ? "low" : ""}">` +
    `${escape(value < low ? words[name] || name : name)}</td><td><meter min="0" max="1" low="${low}" value="${value}">` +
    `</meter></td><td class="number">${value.toFixed(2)}</td><td class="number weight">${weights[name] ?? ""}</td></tr>`);
  $("terms").innerHTML = `<tr><th>term</th><th></th><th>value</th><th>weight</th></tr>${terms.join("")}`;
  $("readers").innerHTML = nodule.readers.map((_, i) =>
    `<span class="swatch" style="background:${READERS[i % READERS.length]}"></span>${i + 1}`).join("") || "none";
  $("ratings").innerHTML = Object.entries(nodule.ratings).map(([name, values]) =>
    `<tr><td>${escape(name)}</td>${values.map((v) => `<td class="number">${escape(v)}</td>`).join("")}</tr>`).join("");
  $("measures").textContent = nodule.measures.join(", ");
  $("notes").innerHTML = nodule.notes.map((note) => `<div>${escape(note)}</div>`).join("");
  for (const column of document.querySelectorAll("#mosaic .column[data-matte]")) {
    const i = Number(column.dataset.matte), method = nodule.mattes[i].method;
    column.classList.toggle("focused", i === state.matte);
    column.classList.toggle("score", method === nodule.method);
    column.classList.toggle("mine", method === row.mine);
    column.classList.toggle("beside", isBeside(nodule.mattes[i]));
  }
}

// The best matte of the other kind, which cannot be chosen and is kept beside the chosen one.
const isBeside = (matte) => !canChoose(matte) && state.nodule.best[matte.kind] === matte.method;

const title = (matte, i) => (canChoose(matte) ? `${i + 1} ${upper(matte.method)}` : upper(matte.method));

const number = (value) => (value === null ? "none" : value.toFixed(2));

// Images --------------------------------------------------------------------------------------------------------------

let panes = []; // {canvas, plane, matte: index or null, contours}

// Sizes follow the window, and how many mattes there are.
function layout() {
  const { nodule } = state, focus = $("focus"), mosaic = $("mosaic");
  const mattes = nodule.mattes.length;
  const wide = $("viewer").clientWidth - 20, high = $("viewer").clientHeight - $("tools").offsetHeight - 14;
  const groups = groupsOf(nodule.mattes);
  const small = Math.floor(Math.min((wide - groups.length * 16) / (mattes + 1) - 14, (high * 0.56 - 64) / 3));
  // Image and matte side by side in one row or, where that makes them larger, in two.
  const rest = high - 3 * small - 86;
  const fit = (across, down) => Math.floor(Math.min((wide - across * 4) / across, (rest - down * 4) / down));
  const across = state.beside && fit(6, 1) >= fit(3, 2) ? 6 : 3;
  const large = fit(across, state.beside && across === 3 ? 2 : 1);
  const shape = `${mattes} ${nodule.nodule_id} ${small} ${large} ${across} ${state.channel}`;
  if (layout.shape !== shape) {
    layout.shape = shape;
    panes = [];
    focus.replaceChildren();
    mosaic.replaceChildren();
    focus.style.gridTemplateColumns = `repeat(${across}, auto)`;
    const planes = [0, 1, 2], kinds = state.beside ? [null, "focus"] : ["focus"];
    const order = across === 6 ? planes.flatMap((plane) => kinds.map((kind) => [plane, kind]))
      : kinds.flatMap((kind) => planes.map((plane) => [plane, kind]));
    for (const [plane, kind] of order) focus.append(pane(plane, kind, large));
    channelButtons();
    const first = columnOf(shownChannel().name, "", "readers' contours", null, small);
    for (let plane = 0; plane < 3; plane++) first.append(pane(plane, null, small));
    mosaic.append(groupOf("", "", [first]));
    for (const { kind, first: start, mattes: of } of groups) {
      const columns = of.map((matte, k) => {
        const fault = matte.words.join(", ") + (matte.converged ? "" : " (did not converge)");
        const column = columnOf(title(matte, start + k), number(matte.score), fault, start + k, small);
        for (let plane = 0; plane < 3; plane++) column.append(pane(plane, start + k, small));
        return column;
      });
      mosaic.append(groupOf(kind, canChoose(of[0]) ? keys(start, of.length) : "to compare", columns));
    }
  }
  draw();
}

// The mattes of one kind are a group: {kind, first: place of its first matte, mattes}.
function groupsOf(mattes) {
  const groups = [];
  mattes.forEach((matte, i) => {
    if (groups.at(-1)?.kind === matte.kind) groups.at(-1).mattes.push(matte);
    else groups.push({ kind: matte.kind, first: i, mattes: [matte] });
  });
  return groups;
}

function groupOf(kind, use, columns) {
  const group = document.createElement("div"), heading = document.createElement("div"), row = document.createElement("div");
  group.className = `group ${use === "to compare" ? "other" : ""}`;
  group.dataset.kind = kind;
  heading.className = "kind";
  heading.title = MEANS[kind] || "";
  heading.textContent = use ? `${kind}: ${use}` : "";
  row.className = "columns";
  row.append(...columns);
  group.append(heading, row);
  return group;
}

function columnOf(name, score, below, matte, size) {
  const column = document.createElement("div");
  column.style.width = `${size + 8}px`;
  column.className = "column";
  const fault = below || "no fault found";
  const good = !below || matte === null;
  column.innerHTML = `<div class="head"><span>${escape(name)}</span><span>${score}</span></div>` +
    `<div class="fault ${good ? "good" : ""}" title="${escape(fault)}">${escape(fault)}</div>`;
  if (matte !== null) {
    column.dataset.matte = matte;
    column.addEventListener("click", () => { state.matte = matte; draw(); describe(); });
  }
  return column;
}

function pane(plane, matte, size) {
  const canvas = document.createElement("canvas"), ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.max(16, Math.round(size * ratio));
  canvas.style.width = canvas.style.height = `${size}px`;
  canvas.className = "pane";
  canvas.dataset.shows = `${PLANES[plane]} ${matte === null ? "image" : "matte"}`;
  const here = { canvas, plane, matte, small: typeof matte === "number" };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    scroll(plane, event.deltaY > 0 ? -1 : 1);
  }, { passive: false });
  canvas.addEventListener("mouseenter", () => { state.plane = plane; });
  canvas.addEventListener("mousedown", (event) => {
    if (here.small) return;
    const { scale, left, top } = place(here, canvas.width);
    const ratioNow = canvas.width / canvas.clientWidth;
    const column = Math.floor((event.offsetX * ratioNow - left) / scale.x);
    const row = Math.floor((event.offsetY * ratioNow - top) / scale.y);
    state.slices = voxelAt(state.nodule, plane, state.slices[plane], row, column);
    draw();
  });
  panes.push(here);
  return canvas;
}

// Where a plane's slice lies on a canvas of the given pixels: pixels per voxel, and the corner of the slice.
function place({ plane }, size) {
  const s = planeShape(state.nodule, plane);
  const side = state.wide
    ? Math.max(...[0, 1, 2].map((axis) => state.nodule.shape[axis] * state.nodule.spacing[axis])) : state.nodule.side;
  const perMm = size / side;
  const scale = { x: (perMm * s.width) / s.columns, y: (perMm * s.height) / s.rows };
  const x = state.wide ? s.width / 2 : s.x, y = state.wide ? s.height / 2 : s.y;
  return { scale, perMm, left: size / 2 - x * perMm, top: size / 2 - y * perMm, shape: s };
}

const scratch = document.createElement("canvas");

function draw() {
  if (!state.nodule) return;
  const { nodule, slices } = state;
  const greys = slices.map((slice, plane) => greySlice(nodule, shownChannel(), plane, slice, state.level, state.width));
  const lines = slices.map((slice, plane) => nodule.readers.map((mask) => {
    const cut = boxSlice(nodule, mask, plane, slice);
    return cut ? outline(cut) : [];
  }));
  const pictures = new Map(); // the same picture serves the large and the small pane
  for (const pane of panes) {
    const matte = pane.matte === "focus" ? state.matte : pane.matte;
    const shown = matte !== null && state.overlay ? matte : null;
    const key = `${pane.plane} ${shown}`;
    if (!pictures.has(key)) pictures.set(key, compose(greys[pane.plane], pane.plane, shown));
    paint(pane, pictures.get(key), matte === null && state.contours ? lines[pane.plane] : []);
  }
}

function compose(grey, plane, matte) {
  const { rows, columns } = planeShape(state.nodule, plane);
  const picture = new ImageData(columns, rows), rgba = picture.data;
  for (let i = 0, o = 0; i < grey.length; i++, o += 4) {
    rgba[o] = rgba[o + 1] = rgba[o + 2] = grey[i];
    rgba[o + 3] = 255;
  }
  const cut = matte === null ? null
    : boxSlice(state.nodule, state.nodule.mattes[matte].alpha, plane, state.slices[plane]);
  if (cut) {
    for (let r = 0, i = 0; r < cut.rows; r++) {
      let o = 4 * ((cut.top + r) * columns + cut.left);
      for (let c = 0; c < cut.columns; c++, i++, o += 4) {
        const a = cut.values[i];
        if (!a) continue;
        const cover = COVER[a] * state.opacity;
        for (let k = 0; k < 3; k++) rgba[o + k] = rgba[o + k] * (1 - cover) + COLOURS[3 * a + k] * cover;
      }
    }
  }
  return picture;
}

function paint(pane, picture, lines) {
  const { canvas, plane } = pane, size = canvas.width, context = canvas.getContext("2d");
  const { scale, perMm, left, top } = place(pane, size);
  scratch.width = picture.width;
  scratch.height = picture.height;
  scratch.getContext("2d").putImageData(picture, 0, 0);
  context.fillStyle = "#212121"; // beyond the crop
  context.fillRect(0, 0, size, size);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(scratch, left, top, picture.width * scale.x, picture.height * scale.y);
  const ratio = window.devicePixelRatio || 1;
  context.lineWidth = (pane.small || canvas.clientWidth < 200 ? 1 : 1.4) * ratio;
  lines.forEach((segments, reader) => {
    context.strokeStyle = READERS[reader % READERS.length];
    context.beginPath();
    for (let i = 0; i < segments.length; i += 4) {
      context.moveTo(left + segments[i] * scale.x, top + segments[i + 1] * scale.y);
      context.lineTo(left + segments[i + 2] * scale.x, top + segments[i + 3] * scale.y);
    }
    context.stroke();
  });
  if (pane.small || size < 180 * ratio) return;
  const [row, column] = pixelOf(state.nodule, plane, state.slices);
  context.strokeStyle = "#ffffff38";
  context.lineWidth = ratio;
  context.beginPath();
  const x = left + (column + 0.5) * scale.x, y = top + (row + 0.5) * scale.y;
  context.moveTo(x, 0); context.lineTo(x, size);
  context.moveTo(0, y); context.lineTo(size, y);
  context.stroke();
  label(context, size, ratio, plane, perMm);
}

function label(context, size, ratio, plane, perMm) {
  const write = (text, x, y, align, base) => {
    context.textAlign = align;
    context.textBaseline = base;
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };
  context.font = `600 ${12 * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  context.strokeStyle = "#000000c0";
  context.lineWidth = 3 * ratio;
  context.fillStyle = "#f2f2f2";
  const edge = 5 * ratio;
  if (state.nodule.oriented) {
    const [l, r, t, b] = SIDES[plane];
    write(l, edge, size / 2, "left", "middle");
    write(r, size - edge, size / 2, "right", "middle");
    write(t, size / 2, edge, "center", "top");
    write(b, size / 2, size - edge, "center", "bottom");
  }
  context.font = `${11 * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  write(`${PLANES[plane]} ${state.slices[plane] + 1}/${state.nodule.shape[plane]}`, edge, edge, "left", "top");
  const bar = [50, 20, 10, 5, 2, 1].find((mm) => mm * perMm <= 0.3 * size) || 1;
  write(`${bar} mm`, edge, size - edge - 5 * ratio, "left", "bottom");
  context.fillRect(edge, size - edge - 3 * ratio, bar * perMm, 2 * ratio);
}

function scroll(plane, step) {
  const last = state.nodule.shape[plane] - 1;
  state.slices[plane] = Math.max(0, Math.min(last, state.slices[plane] + step));
  draw();
}

// Controls ------------------------------------------------------------------------------------------------------------

const shownChannel = () => state.nodule.channels[state.channel];

// Another channel in all images, in the window that it was last shown in.
function setChannel(channel, redraw = true) {
  const before = shownChannel();
  if (before) state.windows[before.name] = [state.window, state.level, state.width];
  state.channel = channel;
  const { name, window, hu } = shownChannel();
  const [named, level, width] = state.windows[name] || (hu ? ["lung"] : ["own", ...window]);
  if (named === "own") [state.level, state.width] = [level, width];
  setWindow(named, false);
  if (redraw) layout();
}

function channelButtons() {
  const { channels } = state.nodule, { hu } = shownChannel();
  $("channels").hidden = channels.length < 2;
  $("channels").replaceChildren(...(channels.length < 2 ? [] : channels.map(({ name }, i) => {
    const button = document.createElement("button");
    button.textContent = name;
    // The key beside the one that it shows next.
    if (i === (state.channel + 1) % channels.length) button.innerHTML += " <kbd>p</kbd>";
    button.classList.toggle("on", i === state.channel);
    button.addEventListener("click", () => { setChannel(i); describe(); });
    return button;
  })));
  $("level").step = $("width").step = hu ? 10 : "any";
  $("width").min = hu ? 1 : 0;
  for (const button of document.querySelectorAll("[data-window]")) {
    button.hidden = !hu && button.dataset.window !== "full";
  }
}

function setWindow(name, redraw = true) {
  state.window = name;
  if (name === "full" && state.nodule) {
    const { slope, intercept } = shownChannel();
    [state.level, state.width] = [intercept + slope * 32767.5, slope * 65535];
  } else if (WINDOWS[name]) [state.level, state.width] = WINDOWS[name];
  // HU are whole numbers; an uptake is not.
  const shown = (value) => (Math.abs(state.width) >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
  $("level").value = shown(state.level);
  $("width").value = shown(state.width);
  for (const button of document.querySelectorAll("[data-window]")) {
    button.classList.toggle("on", button.dataset.window === name);
  }
  if (redraw) draw();
}

function toggle(name) {
  if (name === "flicker") {
    clearInterval(state.flicker);
    state.flicker = state.flicker ? null : setInterval(() => { state.overlay = !state.overlay; draw(); }, FLICKER_MS);
    state.overlay = true;
  } else state[name] = !state[name];
  for (const key of ["beside", "flicker", "contours", "wide"]) $(key).classList.toggle("on", Boolean(state[key]));
  if (!state.nodule) return;
  if (name === "beside") layout(); else draw();
}

function setOpacity(value) {
  state.opacity = Math.max(0, Math.min(1, value));
  $("opacity").value = state.opacity;
  draw();
}

const KEYS = {
  x: () => decide("reject"), u: takeBack,
  ArrowRight: () => { if (!state.busy) { state.asked = performance.now(); go(state.at + 1); } },
  ArrowLeft: () => { if (!state.busy) go(state.at - 1); },
  ArrowUp: () => scroll(state.plane, 1), ArrowDown: () => scroll(state.plane, -1),
  l: () => shownChannel().hu && setWindow("lung"), m: () => shownChannel().hu && setWindow("mediastinum"),
  r: () => setWindow("full"),
  p: () => { setChannel((state.channel + 1) % state.nodule.channels.length); describe(); },
  b: () => toggle("beside"), f: () => toggle("flicker"), c: () => toggle("contours"), w: () => toggle("wide"),
  "[": () => setOpacity(state.opacity - 0.1), "]": () => setOpacity(state.opacity + 0.1),
  ",": () => focusOn(state.matte - 1), ".": () => focusOn(state.matte + 1),
  "?": () => $("keys").showModal(),
};

function focusOn(matte) {
  const n = state.nodule.mattes.length;
  state.matte = (matte + n) % n;
  draw();
  describe();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), select, textarea") || document.querySelector("dialog[open]");
  if (typing || event.ctrlKey || event.altKey || event.metaKey || !state.nodule) return;
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
  if (event.key === " ") {
    event.preventDefault();
    if (state.overlay && !event.repeat) { state.overlay = false; draw(); }
  } else if (digit >= 0 && state.nodule.mattes[digit]) {
    if (!event.repeat) choose(digit);
  } else if (KEYS[event.key]) {
    event.preventDefault();
    if (!event.repeat || event.key.startsWith("Arrow")) KEYS[event.key]();
  }
});
document.addEventListener("keyup", (event) => {
  if (event.key === " " && state.nodule) { state.overlay = true; draw(); }
});
window.addEventListener("resize", () => { if (state.nodule) { layout(); describe(); } });
for (const button of document.querySelectorAll("[data-window]")) {
  button.addEventListener("click", () => setWindow(button.dataset.window));
}
for (const name of ["level", "width"]) {
  $(name).addEventListener("change", () => {
    state[name] = Number($(name).value) || (name === "width" ? 1 : 0);
    setWindow("own");
  });
}
$("opacity").addEventListener("input", () => setOpacity(Number($("opacity").value)));
for (const name of ["beside", "flicker", "contours", "wide"]) $(name).addEventListener("click", () => toggle(name));
for (const name of ["filter", "threshold", "search"]) {
  $(name).addEventListener("change", async () => {
    const keep = state.nodule?.nodule_id;
    await loadRows().catch((error) => say(error.message));
    await setFilter(keep);
    $(name).blur();
  });
}
for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", () => button.blur()); // so that space and arrows go to the images
}
$("help").addEventListener("click", () => $("keys").showModal());
$("reviewer").addEventListener("click", askName);

function askName() {
  $("name").value = state.reviewer;
  $("who").showModal();
}
$("who").addEventListener("close", () => {
  const name = $("name").value.trim();
  if (!name) { askName(); return; }
  state.reviewer = name;
  state.history = [];
  localStorage.setItem("raymat reviewer", name);
  begin();
});

function ramp() {
  const context = $("ramp").getContext("2d"), picture = new ImageData(120, 10);
  for (let i = 0; i < 1200; i++) {
    const a = Math.round(((i % 120) * 255) / 119), cover = COVER[a];
    for (let k = 0; k < 3; k++) picture.data[4 * i + k] = 40 * (1 - cover) + COLOURS[3 * a + k] * cover;
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

async function begin() {
  $("reviewer").textContent = state.reviewer;
  try {
    state.about = await (await ask("/api/about")).json();
    document.title = `raymat review: ${state.about.dataset.split("/").pop()}`;
    await loadRows();
    await loadProgress();
    await setFilter();
  } catch (error) {
    say(error.message);
  }
}

ramp();
setWindow("lung", false);
for (const name of ["beside", "contours"]) $(name).classList.add("on");
if (state.reviewer) begin(); else askName();
