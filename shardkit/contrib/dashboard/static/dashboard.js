"use strict";
// One pulse of the cluster comes in, the page becomes it. Text goes in as text, never as markup.

const STEPS = ["planned", "copy", "structure", "stream", "verify", "fence", "follow", "soak", "finish"];
const ACTIONS = { resume: "Go on", abort: "Abort", rollback: "Go back", finish: "Drop the follower" };
const MEASURES = { size_bytes: size, units_per_s: perSecond, reads_per_s: perSecond, writes_per_s: perSecond, p99_ms: milliseconds };
const NAMES = { size_bytes: "bytes", units_per_s: "units of work per second", reads_per_s: "reads per second", writes_per_s: "writes per second", p99_ms: "99 of 100 statements took at most that long" };
const HEATS = 7;
const STALE_MS = 6000;
const $ = (id) => document.getElementById(id);

let pulse = null;
let heardAt = 0;
let chosen = null; // "server/shard"
let options = { changes: false };

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${bytes >= 100 || unit === 0 ? bytes.toFixed(0) : bytes.toFixed(1)} ${units[unit]}`;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? Math.round(value).toLocaleString("en") : Number(value.toFixed(1)).toLocaleString("en");
}

function perSecond(value) { return value === null || value === undefined ? "–" : `${number(value)}/s`; }

function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1000 ? `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms` : `${(value / 1000).toFixed(1)} s`;
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 90 ? `${value.toFixed(0)} s` : value < 5400 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`;
}

function schema(shard, epoch) { return `s${String(shard).padStart(4, "0")}_e${epoch}`; }

// Heat: steps of a logarithmic scale over what is there now, so that a few giants do not hide the others.
function scale(values) {
  const there = values.filter((value) => value > 0);
  if (!there.length) return { low: 0, high: 0, heat: () => 0 };
  const low = Math.min(...there), high = Math.max(...there), width = Math.log(high / low) || 1;
  const heat = (value) => !(value > 0) ? 0 : high === low ? 3 : Math.round(1 + (HEATS - 2) * Math.log(value / low) / width);
  return { low, high, heat };
}

function draw() {
  if (!pulse) return;
  const measure = $("measure").value;
  const moving = new Map(), coming = new Map();
  for (const move of pulse.moves) {
    if (move.ended || ["soak", "finish", "follow"].includes(move.step)) continue;
    moving.set(`${move.source}/${move.shard}`, move);
    if (!coming.has(move.target)) coming.set(move.target, []);
    coming.get(move.target).push(move);
  }
  const found = scale(pulse.servers.flatMap((server) => server.shards.map((shard) => shard[measure] ?? 0)));
  drawLegend(measure, found);
  const most = Math.max(...pulse.servers.map((server) => server.placed), 0);
  const all = pulse.servers.reduce((sum, server) => sum + server.placed, 0);
  $("servers").className = `servers ${most > 700 || all > 1500 ? "most" : most > 140 || all > 600 ? "many" : ""}`;
  keep($("servers"), pulse.servers, (server) => server.name, makeServer, (column, server) => {
    drawServer(column, server);
    const cells = server.shards.map((shard) => ({ ...shard, server: server.name, move: moving.get(`${server.name}/${shard.shard}`), coming: false }));
    for (const move of coming.get(server.name) ?? []) cells.push({ shard: move.shard, server: server.name, move, coming: true });
    keep(column.querySelector(".cells"), cells, (one) => `${one.server}/${one.shard}${one.coming ? "/coming" : ""}`, makeCell,
      (cell, one) => drawCell(cell, one, measure, found));
  });
  if (!document.querySelector('.cell[tabindex="0"]')) document.querySelector(".cell")?.setAttribute("tabindex", "0");
  drawTrouble();
  drawMoves();
  drawBusy(measure);
  drawRest();
  drawDetail();
  $("cluster").textContent = `cluster ${pulse.cluster.slice(0, 8)} · map ${pulse.version} · ${pulse.shard_count} shards on ${pulse.servers.length} servers`;
}

// Keep the children of a node in step with a list: what stays is changed in place, so focus and selection stay too.
function keep(parent, list, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = parent.firstElementChild;
  for (const one of list) {
    const key = String(keyOf(one));
    let child = known.get(key);
    if (child) known.delete(key);
    else { child = make(one); child.dataset.key = key; }
    update(child, one);
    if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
  }
  for (const gone of known.values()) gone.remove();
}

function makeServer(server) {
  const title = element("h3", {}, server.name);
  const cells = element("div", { class: "cells", role: "listbox", "aria-label": `Shards of ${server.name}` });
  return element("article", { class: "server", "aria-label": `Server ${server.name}` },
    element("div", { class: "title" }, title, element("span", { class: "pill" })),
    element("p", { class: "facts" }), element("p", { class: "problem", hidden: true }), cells);
}

function drawServer(column, server) {
  const pill = column.querySelector(".pill");
  const bad = server.problem !== null;
  column.classList.toggle("down", bad);
  set(pill, bad ? "does not answer" : server.state, `pill ${bad ? "bad" : server.state === "active" ? "good" : "warn"}`);
  const facts = [`${server.placed} shards`, size(server.size_bytes)];
  if (server.connections !== null) facts.push(`${server.connections} of ${server.max_connections} connections`);
  if (server.release) facts.push(`PostgreSQL ${server.release.split(" ")[0]}`);
  for (const one of server.standbys) facts.push(`standby ${one.name}: ${one.sync}, ${size(one.lag_bytes)} behind`);
  if (server.prepared) facts.push(`${server.prepared} prepared transactions`);
  set(column.querySelector(".facts"), facts.join(" · "), "facts");
  const problem = column.querySelector(".problem");
  problem.hidden = !bad;
  set(problem, server.problem ?? "", "problem");
}

function set(node, text, className) {
  if (node.textContent !== text) node.textContent = text;
  if (node.className !== className) node.className = className;
}

function makeCell(one) {
  return element("div", { class: "cell", role: "option", tabindex: "-1", "aria-selected": "false", onclick: (event) => choose(event.currentTarget, true), onfocus: (event) => choose(event.currentTarget, false) }, String(one.shard));
}

function drawCell(cell, one, measure, found) {
  const heat = one.coming ? 0 : found.heat(one[measure]);
  if (cell.dataset.heat !== String(heat)) cell.dataset.heat = heat;
  const name = `cell${one.move && !one.coming ? " leaving" : ""}${one.coming ? " coming" : ""}${one.move?.stuck ? " stuck" : ""}`;
  if (cell.className !== name) cell.className = name;
  const doing = !one.move ? "" : one.coming ? `, coming from ${one.move.source}` : `, moving to ${one.move.target}, step ${one.move.step}`;
  const label = one.coming ? `shard ${one.shard}${doing}` : `shard ${one.shard}, ${MEASURES[measure](one[measure])} (${NAMES[measure]})${doing}`;
  if (cell.getAttribute("aria-label") !== label) { cell.setAttribute("aria-label", label); cell.title = label; }
  const selected = String(cell.dataset.key === chosen);
  if (cell.getAttribute("aria-selected") !== selected) cell.setAttribute("aria-selected", selected);
}

function choose(cell, focus) {
  chosen = cell.dataset.key;
  for (const other of document.querySelectorAll('.cell[tabindex="0"], .cell[aria-selected="true"]')) {
    other.setAttribute("tabindex", "-1");
    other.setAttribute("aria-selected", "false");
  }
  cell.setAttribute("tabindex", "0");
  cell.setAttribute("aria-selected", "true");
  if (focus) cell.focus();
  drawDetail();
}

function walk(event) {
  const cell = event.target.closest?.(".cell");
  if (!cell) return;
  const mine = [...cell.parentElement.children], at = mine.indexOf(cell);
  const across = mine.filter((other) => other.offsetTop === cell.offsetTop).length || 1;
  const columns = [...document.querySelectorAll(".cells")], column = columns.indexOf(cell.parentElement);
  const next = (step) => columns[column + step]?.children[Math.min(at, (columns[column + step]?.children.length ?? 1) - 1)];
  const edge = (step) => mine[at + step] && mine[at + step].offsetTop === cell.offsetTop ? mine[at + step] : next(step);
  const to = { ArrowRight: () => edge(1), ArrowLeft: () => edge(-1), ArrowDown: () => mine[at + across] ?? mine[mine.length - 1],
    ArrowUp: () => mine[at - across] ?? mine[0], Home: () => mine[0], End: () => mine[mine.length - 1] }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  choose(to, true);
}

function drawLegend(measure, found) {
  const show = MEASURES[measure];
  const parts = [element("span", {}, found.high ? show(found.low) : "nothing yet")];
  for (let heat = 1; heat < HEATS && found.high; heat += 1) parts.push(swatch(heat));
  if (found.high) parts.push(element("span", {}, show(found.high)));
  $("legend").replaceChildren(...parts);
  $("legend").setAttribute("aria-label", `Heat by ${NAMES[measure]}`);
}

function swatch(heat) {
  const made = element("i", { "aria-hidden": "true" });
  made.style.background = `var(--h${heat})`;
  return made;
}

let lastDetail = "";

function drawDetail() {
  const [name, shard, coming] = (chosen ?? "").split("/");
  const server = pulse?.servers.find((one) => one.name === name);
  const found = server?.shards.find((one) => String(one.shard) === shard);
  const move = pulse?.moves.find((one) => !one.ended && String(one.shard) === shard);
  let facts = [["", "No shard is chosen."]];
  if (coming && move) facts = [["Shard", shard], ["Move", `${move.id} from ${move.source}, step ${move.step}`]];
  else if (found) {
    facts = [["Shard", shard], ["Schema", schema(found.shard, found.epoch)], ["Server", name], ["Size", size(found.size_bytes)],
      ["Units", perSecond(found.units_per_s)], ["Reads", perSecond(found.reads_per_s)], ["Writes", perSecond(found.writes_per_s)], ["p99", milliseconds(found.p99_ms)]];
    if (move) facts.push(["Move", `${move.id} to ${move.target}, step ${move.step}`]);
  }
  const movable = options.changes && found && !coming && !move;
  const targets = movable ? pulse.servers.filter((one) => one.name !== name && one.state === "active").map((one) => one.name) : [];
  const now = JSON.stringify([facts, targets]);
  if (now === lastDetail || document.activeElement?.closest("#detail")) return;
  lastDetail = now;
  const parts = facts.map(([label, value]) => element("span", {}, label ? element("b", {}, label) : null, value));
  if (targets.length) {
    const select = element("select", { "aria-label": "Target" }, ...targets.map((one) => element("option", {}, one)));
    const begin = () => ask(`Move shard ${shard} from ${name} to ${select.value}, while it is written to?`, "moves", { shard: Number(shard), target: select.value });
    parts.push(element("span", {}, "Move to ", select, " ", element("button", { type: "button", onclick: begin }, "Move…")));
  }
  $("detail").replaceChildren(...parts);
}

function drawTrouble() {
  const found = [];
  for (const server of pulse.servers) if (server.problem) found.push(`${server.name}: ${server.problem}`);
  for (const move of pulse.moves) if (move.stuck) found.push(`move ${move.id} of shard ${move.shard} stopped at ${move.step}: ${move.problem ?? "nobody works on it"}`);
  for (const warning of pulse.cache.warnings ?? []) found.push(`cache: ${warning}`);
  $("trouble").hidden = !found.length;
  keep($("troubles"), found, (text) => text, (text) => element("li", {}, text), () => {});
}

function drawMoves() {
  const ended = pulse.moves.filter((move) => move.ended);
  $("ended").hidden = !ended.length;
  $("ended-count").textContent = `${ended.length} ended in the last minutes`;
  rows("ended-rows", ended, (move) => [move.id, move.shard, `${move.source} → ${move.target}`, move.step, move.stall_ms === null ? "–" : `${number(move.stall_ms)} ms`], 4);
  const under = pulse.moves.filter((move) => !move.ended);
  keep($("moves"), under, (move) => move.id, makeMove, drawMove);
  if (!under.length) $("moves").replaceChildren(element("p", { class: "quiet", "data-key": "none" }, "No shard is moving."));
}

function makeMove(move) {
  return element("article", { "aria-label": `Move ${move.id}` },
    element("div", { class: "line" }, element("h3", {}, `Move ${move.id}`),
      element("span", {}, `shard ${move.shard}${move.tenant ? ", one tenant of it" : ""}`), element("span", {}, `${move.source} → ${move.target}`),
      element("span", { class: "buttons" })),
    element("ol", { class: "steps", "aria-label": "Steps" }, ...STEPS.map((step) => element("li", {}, step))),
    element("progress"), element("p", { class: "line quiet" }), element("p", { class: "bad" }));
}

// In place: a button that is replaced while it is pressed is not clicked, and one that has the focus loses it.
function drawMove(card, move) {
  const [, steps, bar, facts, stopped] = card.children, at = STEPS.indexOf(move.step);
  const name = `move${move.stuck ? " stuck" : ""}`;
  if (card.className !== name) card.className = name;
  keep(card.querySelector(".buttons"), actions(move), (action) => action, (action) => element("button", { type: "button", onclick: () =>
    ask(`${ACTIONS[action]}: move ${move.id} of shard ${move.shard}?`, `moves/${move.id}/${action}`, {}) }, ACTIONS[action]), () => {});
  [...steps.children].forEach((step, n) => {
    step.className = n < at ? "past" : "";
    if (n === at) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  });
  bar.hidden = !move.total;
  bar.setAttribute("aria-label", `Progress of ${move.step}`);
  [bar.max, bar.value] = [move.total || 1, move.done];
  const said = [];
  if (move.total) said.push(`${move.step === "copy" ? `${size(move.done)} of ${size(move.total)}` : `${number(move.done)} of ${number(move.total)} rows`}`);
  if (move.forecast_s !== null) said.push(`${seconds(move.forecast_s)} left of this step`);
  if (move.lag_ms !== null) said.push(`${number(move.lag_ms)} ms behind`);
  if (move.stall_ms !== null) said.push(`writers were held off for ${number(move.stall_ms)} ms`);
  if (move.note) said.push(move.note);
  said.push(`${seconds(move.age_s)} old`, move.held ? "worked on" : "nobody works on it");
  set(facts, said.join(" · "), "line quiet");
  stopped.hidden = !move.stuck;
  set(stopped, move.stuck ? `Stopped: ${move.problem ?? "nobody works on it"}` : "", "bad");
}

function actions(move) {
  if (!options.changes) return [];
  return move.step === "soak" ? ["rollback", "finish"] : move.held ? [] : STEPS.indexOf(move.step) <= 5 ? ["resume", "abort"] : ["resume"];
}

async function ask(question, path, given) {
  const dialog = $("ask");
  $("ask-text").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  if (dialog.returnValue !== "yes") return;
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(given) });
  const said = await answer.json().catch(() => ({ error: `it answered ${answer.status}` }));
  if (said.error) {
    $("trouble").hidden = false;
    $("troubles").append(element("li", {}, said.error));
  }
}

function drawBusy(measure) {
  const all = pulse.servers.flatMap((server) => server.shards.map((shard) => ({ ...shard, server: server.name })));
  all.sort((a, b) => (b[measure] ?? 0) - (a[measure] ?? 0) || b.size_bytes - a.size_bytes || a.shard - b.shard);
  rows("busy", all.slice(0, 10), (one) => [one.shard, one.server, size(one.size_bytes), number(one.units_per_s), number(one.reads_per_s), number(one.writes_per_s), milliseconds(one.p99_ms)], 2);
  rows("hot", pulse.hot.slice(0, 10), (one) => [one.tenant, one.shard, number(one.units_per_s)], 1);
  if (!pulse.hot.length) $("hot").replaceChildren(element("tr", {}, element("td", { colspan: 3, class: "quiet" }, "No program has told of its load yet.")));
}

function rows(id, list, cells, numbersFrom) {
  $(id).replaceChildren(...list.map((one) => element("tr", {}, ...cells(one).map((text, n) => element("td", { class: n >= numbersFrom ? "n" : null }, String(text))))));
}

function drawRest() {
  const found = [];
  const cache = pulse.cache;
  if (cache.hit_rate !== null && cache.hit_rate !== undefined) found.push(["Cache hit rate", `${(100 * cache.hit_rate).toFixed(1)} %`]);
  else found.push(["Cache hit rate", "hits" in cache ? "nobody has asked yet" : "no Redis in the settings"]);
  if (cache.memory) found.push(["Redis memory", cache.memory]);
  const run = pulse.migration;
  found.push(["Migrations", run ? `run ${run.run} to ${run.target}: ${run.state}, ${run.unfinished} shards not there` : "none was run"]);
  $("rest").replaceChildren(...found.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function heard(text) {
  const news = JSON.parse(text);
  heardAt = Date.now();
  if (news.error) live("bad", news.error);
  else { pulse = news; live("good", "live"); draw(); }
}

function live(kind, text) { set($("live"), text, `pill ${kind}`); }

function listen() {
  const events = new EventSource("events");
  events.onmessage = (event) => heard(event.data);
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(poll, 2000); // a server that cannot stream is asked instead
    live("bad", "the dashboard does not answer");
  };
}

async function poll() {
  try { heard(await (await fetch("pulse.json")).text()); } catch { live("bad", "the dashboard does not answer"); }
  setTimeout(poll, 2000);
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

function remember(id, then) {
  const field = $(id);
  try { field.value = localStorage.getItem(`shardkit-${id}`) ?? field.value; } catch { /* a browser that keeps nothing */ }
  field.addEventListener("change", () => {
    try { localStorage.setItem(`shardkit-${id}`, field.value); } catch { /* as above */ }
    then(field.value);
  });
  then(field.value);
}

remember("theme", theme);
remember("measure", draw);
document.addEventListener("keydown", walk);
setInterval(() => { if (heardAt && Date.now() - heardAt > STALE_MS) live("warn", `nothing heard for ${seconds((Date.now() - heardAt) / 1000)}`); }, 1000);
fetch("options.json").then((answer) => answer.json()).then((found) => { options = found; draw(); }).catch(() => {});
listen();
