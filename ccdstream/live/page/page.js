"use strict";
/* The page of a live session. One WebSocket brings everything: a JSON header, and a JPEG where
   there is a new picture. Each message is acknowledged once it is drawn, and the server makes the
   next one of what is newest then.

   An old picture is never left standing: this page's own timer withdraws it when no newer one came
   in time, whatever the server says or does not say. */

const $ = (id) => document.getElementById(id);

const SILENCE_MS = 1500; // the server speaks twice a second, so then it is gone
const RETRY_MS = [250, 500, 1000, 2000];
const LEAST_HOLD_MS = 250;
const MOST_INTERVAL_MS = 1000;
const GAP_S = 1; // a longer time without scores stays empty in the line
const DECADES = 3; // scores stand at -log10(1 - score), as in the overlay
const KEEP_S = 620;
const STATES = ["UNCLEAR", "NORMAL", "WATCH", "ALERT"];
const COLOURS = ["#868c92", "#8cb2c8", "#ffc440", "#ff5454"];

let facts = {};
let version = null;
let over = false;

/* -- words and numbers --------------------------------------------------------------------------- */

function clockOf(seconds, digits = 1) {
  const sign = seconds < 0 ? "-" : "";
  const tenths = Math.floor(Math.abs(seconds) * 10 ** digits) / 10 ** digits;
  const h = Math.floor(tenths / 3600), m = Math.floor(tenths / 60) % 60;
  const s = (tenths % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return `${sign}${h ? `${h}:${String(m).padStart(2, "0")}` : m}:${s}`;
}
const wallOf = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const scoreOf = (score) => (Math.min(Math.floor(1000 * score + 1e-4), 999) / 1000).toFixed(3); // as ccdstream.history.score_text
const msOf = (seconds) => `${Math.round(seconds * 1000)} ms`;
function lengthOf(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/* -- status -------------------------------------------------------------------------------------- */

let served = ["NO CONNECTION", "connecting"]; // what the server says
let servedSince = 0; // and since when it is so
let late = null; // what this page finds itself: [kind, detail]
let connected = false;
let lostBecause = "connecting";
let statusKind = "";
let statusSince = performance.now();
let speaking = 0;

const CAUSES = {
  "READY": "analysed within the bound",
  "OUT OF VIEW": "no bowel in the picture",
  "UNCLEAR": "the picture tells nothing",
  "LAG": "",
  "NO SIGNAL": "the source gives no picture",
};

function currentStatus() {
  if (over) return ["SESSION OVER", facts.output ? `the results are in ${facts.output}` : "the session has ended"];
  if (!connected) return ["NO CONNECTION", lostBecause];
  if (served[0] === "NO SIGNAL") return served;
  return late ?? served;
}

function showStatus() {
  const [kind, detail] = currentStatus();
  const cause = detail || CAUSES[kind] || "";
  if (kind !== statusKind) {
    statusKind = kind;
    statusSince = kind === served[0] && connected && !over ? servedSince : performance.now();
    document.body.dataset.kind = kind;
    clearTimeout(speaking); // a hiccup is not worth a word, nor is each of its numbers
    speaking = setTimeout(() => say($("speak"), kind === "LAG" ? "LAG" : `${kind}. ${cause}`), kind === "LAG" ? 1000 : 0);
  }
  const number = kind === "LAG" ? /^(\d+ ms)(?:, )?(.*)$/.exec(detail) : null;
  const word = number ? `LAG ${number[1]}` : kind;
  say($("kind"), word);
  $("word").style.setProperty("--chars", word.length);
  say($("detail"), number ? number[2] || "the analysis is late, its heat withdrawn" : cause);
  say($("blank-kind"), kind);
  say($("blank-cause"), kind === "READY" ? "waiting for a picture" : cause);
  say($("meanwhile"), word);
  $("meanwhile").style.setProperty("--chars", word.length);
  showAlarm();
  showSince();
  showRecording();
  const able = connected && !over;
  for (const id of ["mark", "note", "snapshot"]) $(id).disabled = !able;
}

/** An open alert takes the place of the status, which is told beside it meanwhile. */
function showAlarm() {
  const watching = connected && !over && statusKind !== "NO SIGNAL";
  const open = watching ? [...cards.values()].map((entry) => entry.card).filter((card) => card.closed_s === null) : [];
  const newest = open.sort((a, b) => b.number - a.number)[0];
  const was = document.body.dataset.alert;
  document.body.dataset.alert = newest ? "open" : "";
  for (const id of ["alarm", "alarm-detail", "meanwhile"]) $(id).hidden = !newest;
  for (const id of ["word", "detail", "state"]) $(id).hidden = Boolean(newest);
  const shown = newest ? "ALERT" : statusKind;
  document.title = shown === "READY" ? "ccdstream live" : `${shown} - ccdstream live`;
  if (!newest) return;
  say($("alarm-detail"), `unusual for ${lengthOfAlert(newest)}, ${placeOf(newest)}`);
  if (was !== "open") {
    clearTimeout(speaking);
    say($("speak"), `ALERT, ${placeOf(newest)}`);
  }
}

function showSince() {
  const seconds = Math.floor((performance.now() - statusSince) / 1000);
  say($("blank-since"), seconds >= 2 && !over && !$("blank").hidden ? `for ${lengthOf(seconds).replace(".0 s", " s")}` : "");
}

/* -- picture ------------------------------------------------------------------------------------- */

const picture = $("picture");
const pen = picture.getContext("2d", { alpha: false });
let drawn = 0; // number of the picture on the canvas
let shownAt = null; // stream time of it; null while none is to be seen
let bornMs = 0; // when it was captured, on this page's clock
let intervalMs = 100;
let arrivedMs = 0;
let holdTimer = 0;
let lagging = 0;

/** How old a picture may get: the session's bound, and as long again for the next one, or two of the
    usual steps between pictures. */
function holdMs() {
  const bound = 1000 * (facts.max_latency_s ?? 0.1);
  return Math.max(LEAST_HOLD_MS, bound + Math.max(bound, 2 * Math.min(intervalMs, MOST_INTERVAL_MS)));
}

function withdraw() {
  clearTimeout(holdTimer);
  if (shownAt !== null) {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, picture.width, picture.height); // what is hidden is gone, too
  }
  shownAt = null;
  picture.hidden = true;
  $("blank").hidden = false;
  showScore(null, "");
}

function guard() {
  clearTimeout(holdTimer);
  if (shownAt === null) return;
  const left = bornMs + holdMs() - performance.now();
  if (left > 0) {
    holdTimer = setTimeout(guard, left + 1);
    return;
  }
  withdraw();
  tooLate("no newer picture");
}

function tooLate(why) {
  if (!connected || over) return;
  late = ["LAG", `${Math.round(performance.now() - bornMs)} ms, ${why}`];
  clearInterval(lagging);
  lagging = setInterval(() => {
    if (late === null || !connected) return clearInterval(lagging);
    late = ["LAG", `${Math.round(performance.now() - bornMs)} ms, ${why}`];
    showStatus();
  }, 200);
  showStatus();
}

async function draw(header, jpeg, receivedMs) {
  const born = receivedMs - 1000 * header.age_s;
  const bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  try {
    if (header.number <= drawn || !connected || document.hidden) return false;
    // the way to here is in no clock; the quickest of the last few there and back bounds it
    const age = performance.now() - born;
    const least = 1000 * (header.age_s + header.trip_s);
    drawn = header.number;
    bornMs = Math.min(born, performance.now() - least);
    if (arrivedMs) intervalMs += 0.2 * (Math.min(receivedMs - arrivedMs, MOST_INTERVAL_MS) - intervalMs);
    arrivedMs = receivedMs;
    if (Math.max(age, least) > holdMs()) {
      withdraw();
      tooLate("this browser or the network is slow");
      return false;
    }
    const wide = Math.round(bitmap.width * (facts.sample_aspect_ratio ?? 1)); // pixels need not be square
    if (picture.width !== wide || picture.height !== bitmap.height) {
      picture.width = wide;
      picture.height = bitmap.height;
      document.documentElement.style.setProperty("--aspect", (wide / bitmap.height).toFixed(4));
    }
    pen.drawImage(bitmap, 0, 0, wide, bitmap.height);
    shownAt = header.stream_s;
    late = null;
    picture.hidden = false;
    $("blank").hidden = true;
    showScore(header.score, header.state);
    guard();
    return true;
  } finally {
    bitmap.close();
  }
}

function showScore(score, state) {
  say($("state"), state || "\u2013");
  $("state").dataset.state = state;
  say($("score"), score === null || score === undefined ? "\u2013" : scoreOf(score));
}

/* -- figures ------------------------------------------------------------------------------------- */

let counted = null;

function showCounters(counters, atS) {
  const dropped = Object.keys(counters).filter((n) => n.startsWith("dropped.") && n !== "dropped.recorder")
    .reduce((sum, name) => sum + counters[name], 0);
  if (counted && atS > counted.atS && counters.analysed >= counted.counters.analysed) {
    const rate = (counters.analysed - counted.counters.analysed) / (atS - counted.atS);
    counted.rate = counted.rate === undefined ? rate : counted.rate + 0.4 * (rate - counted.rate);
    say($("rate"), `${counted.rate.toFixed(1)}/s`);
  }
  counted = { counters, atS, rate: counted?.rate };
  const share = counters.captured ? (100 * dropped) / counters.captured : 0;
  say($("dropped"), `${share.toFixed(1)} %`);
  $("dropped").title = `${dropped} of ${counters.captured ?? 0} frames: ${counters["dropped.slot"] ?? 0} overtaken, ${counters["dropped.late"] ?? 0} late`;
  const delay = counters["delay.capture_to_result.p95"];
  say($("delay"), delay === undefined ? "\u2013" : msOf(delay));
  $("delay").title = "capture to result, 95 of 100 frames within";
  const screen = counters["delay.capture_to_screen.p95"];
  say($("screen"), screen === undefined ? "\u2013" : msOf(screen));
  $("screen").title = "capture until a browser has drawn it, 95 of 100 pictures within";
}

function showFacts(told) {
  if (version !== null && told.version !== version) location.reload(); // another ccdstream answers
  version = told.version;
  const before = facts;
  facts = told;
  showSource(told.source ?? "");
  say($("mode"), told.mode ?? "");
  say($("model"), told.model ?? "");
  $("model").title = told.model ?? "";
  say($("since"), told.started_wall ? `since ${wallOf(told.started_wall)}` : "");
  if (told.notice && told.notice !== before.notice) toast(told.notice);
  if (told.snapshot && "version" in before && told.snapshot.number !== before.snapshot?.number) showSnapshot(told.snapshot);
  if (told.failed && told.failed !== before.failed) toast(told.failed, { bad: true, seconds: 30 });
  showRecording();
  guard(); // the bound may be another
  lineChanged = true;
}

/** Where a name is too long, its beginning is left out: what it ends with tells most. */
function showSource(name) {
  const cut = Math.max(name.lastIndexOf("/", name.length - 2), name.lastIndexOf("\\", name.length - 2)) + 1;
  say($("source-way"), name.slice(0, cut));
  say($("source-name"), name.slice(cut));
  $("source").title = name;
}

function showSnapshot({ file, failed }) {
  if (failed) toast(`No snapshot: ${failed}`, { bad: true });
  else toast(`Snapshot kept: ${facts.output ? `${facts.output}/` : ""}${file}`, { seconds: 12 });
}

function showRecording() {
  const failed = facts.recording_failed, on = facts.recording;
  const known = connected || over;
  let [kind, word, what] = ["unknown", "RECORDING UNKNOWN", ""];
  if (known && failed) [kind, word, what] = ["failed", over ? "Recording failed:" : "NOT RECORDING:", failed];
  else if (connected && !over && on && served[0] === "NO SIGNAL") [kind, word, what] = ["paused", "Recording waits", "for a picture"];
  else if (known && on) [kind, word, what] = over ? ["over", "Recording ended", on] : ["yes", "Recording", on];
  else if (known) [kind, word, what] = ["no", over ? "Not recorded" : "NOT RECORDING", "(not asked for)"];
  $("recording").dataset.recording = kind;
  say($("recording-word"), word);
  say($("recording-what"), what);
}

/* -- alerts -------------------------------------------------------------------------------------- */

const cards = new Map(); // number -> {card, element}
const heard = new Set(); // numbers that had their tone
let alertsKnown = false;

function showAlerts(changed, gone) {
  const list = $("alerts");
  for (const number of gone) {
    cards.get(number)?.element.remove();
    cards.delete(number);
  }
  for (const card of changed) {
    let entry = cards.get(card.number);
    if (!entry) {
      entry = { element: cardElement(card) };
      cards.set(card.number, entry);
      const after = [...list.children].find((child) => Number(child.dataset.number) < card.number);
      list.insertBefore(entry.element, after ?? null); // the newest first
      if (alertsKnown && card.closed_s === null && !heard.has(card.number)) tone();
      heard.add(card.number);
    }
    entry.card = card;
    fillCard(entry);
  }
  alertsKnown = true;
  $("no-alerts").hidden = cards.size > 0;
  const open = [...cards.values()].filter((entry) => entry.card.closed_s === null).length;
  say($("alerts-count"), cards.size ? `${cards.size}${open ? `, ${open} open` : ""}` : "");
  settleFocus();
  showAlarm();
  lineChanged = true;
}

function cardElement(card) {
  const item = document.createElement("li");
  item.className = "card";
  item.dataset.number = card.number;
  item.tabIndex = -1;
  item.innerHTML = `<div class="no-picture"></div><div><div class="at"><span></span><span class="tag" hidden>OPEN</span></div>
    <p class="wall-time"></p><p class="how"></p><p class="where"></p></div>`; // no text of others in it
  item.addEventListener("focus", () => { settleFocus(item); lineChanged = true; });
  item.addEventListener("blur", () => { lineChanged = true; });
  return item;
}

function fillCard({ card, element }) {
  const open = card.closed_s === null;
  element.classList.toggle("open", open);
  if (card.thumbnail) {
    let image = element.querySelector("img");
    if (!image) {
      image = document.createElement("img");
      element.querySelector(".no-picture").replaceWith(image);
    }
    const source = `alerts/${card.number}.jpg?peak=${card.peak_s}`;
    if (image.getAttribute("src") !== source) image.src = source;
    image.alt = `Frame of the peak, at ${clockOf(card.peak_s)}`;
  }
  say(element.querySelector(".at span"), clockOf(card.opened_s));
  element.querySelector(".tag").hidden = !open;
  say(element.querySelector(".wall-time"), `opened ${wallOf(card.opened_wall_s)}`);
  say(element.querySelector(".where"), placeOf(card));
  lengthOfCard({ card, element });
}

function placeOf(card) {
  return card.clock === null ? "position not known"
    : typeof card.clock === "number" ? `at ${card.clock} o'clock` : `at ${card.clock}`;
}

function lengthOfAlert(card) {
  const end = card.closed_s ?? Math.max(streamNow() ?? card.peak_s, card.opened_s);
  return lengthOf(Math.max(end - card.opened_s, 0));
}

function lengthOfCard({ card, element }) {
  say(element.querySelector(".how"), `${lengthOfAlert(card)}, peak ${scoreOf(card.peak_score)}`);
}

/** One card of the list can be reached by Tab, the others by arrow keys from there. */
function settleFocus(item) {
  const items = [...$("alerts").children];
  const chosen = item ?? items.find((one) => one.tabIndex === 0) ?? items[0];
  for (const one of items) one.tabIndex = one === chosen ? 0 : -1;
}

function step(by) {
  const items = [...$("alerts").children];
  if (!items.length) return;
  const at = items.indexOf(document.activeElement);
  items[at < 0 ? 0 : Math.min(Math.max(at + by, 0), items.length - 1)].focus();
}

/* -- the line ------------------------------------------------------------------------------------ */

const line = $("line");
const ink = line.getContext("2d");
let points = []; // [stream s, score or null, state]
let rangeS = 120;
let lineChanged = true;
let clock = null; // [stream s, when], to go on between pictures and without a signal
let pointer = null;

const heightOf = (score) => Math.min(Math.max(-Math.log10(Math.max(1 - score, 1e-9)) / DECADES, 0), 1);

function streamNow() {
  return clock === null ? null : clock[0] + (connected && !over ? (performance.now() - clock[1]) / 1000 : 0);
}

function addPoints(more) {
  const last = points.length ? points[points.length - 1][0] : -Infinity;
  const newer = more.filter((point) => point[0] > last);
  points.push(...newer);
  const end = points[points.length - 1]?.[0] ?? 0;
  if (points.length > 64 && points[0][0] < end - KEEP_S - 30) {
    points = points.filter((point) => point[0] >= end - KEEP_S);
  }
  lineChanged = true;
}

function frameOfLine() {
  const scale = window.devicePixelRatio || 1;
  const box = line.getBoundingClientRect();
  const width = Math.max(Math.round(box.width * scale), 1), height = Math.max(Math.round(box.height * scale), 1);
  if (line.width !== width || line.height !== height) {
    line.width = width;
    line.height = height;
  }
  const small = box.height < 120;
  const left = 52 * scale, right = width - 12 * scale, top = 10 * scale, foot = height - (small ? 18 : 22) * scale;
  return { scale, width, height, left, right, top, foot, now: streamNow() ?? 0 };
}

function drawLine() {
  lineChanged = false;
  const f = frameOfLine(), { scale, left, right, top, foot, now } = f;
  const x = (s) => right - ((now - s) / rangeS) * (right - left);
  const y = (score) => foot - heightOf(score) * (foot - top);
  ink.clearRect(0, 0, f.width, f.height);
  ink.lineWidth = scale;
  ink.font = `${12 * scale}px system-ui, "DejaVu Sans", sans-serif`;

  // what the scale means
  ink.textBaseline = "middle";
  ink.textAlign = "right";
  for (const score of [0, 0.9, 0.99, 0.999]) {
    ink.strokeStyle = "#252c33";
    ink.beginPath(); ink.moveTo(left, y(score)); ink.lineTo(right, y(score)); ink.stroke();
    ink.fillStyle = "#a3adb6";
    ink.fillText(String(score), left - 8 * scale, y(score));
  }
  ink.textBaseline = "alphabetic";
  ink.textAlign = "center";
  const every = rangeS / 4;
  for (let k = 0; k <= 4; k++) {
    const text = k === 0 ? "now" : `-${clockOf(k * every, 0)}`;
    ink.textAlign = k === 0 ? "right" : k === 4 ? "left" : "center";
    ink.fillText(text, x(now - k * every), f.height - 5 * scale);
  }

  // alerts as bands, and the chosen one
  const chosen = document.activeElement?.dataset?.number;
  for (const { card } of cards.values()) {
    const from = Math.max(x(card.opened_s), left), to = Math.min(x(card.closed_s ?? now), right);
    if (to < left || from > right) continue;
    ink.fillStyle = String(card.number) === chosen ? "#ff545455" : "#ff545420";
    ink.fillRect(from, top, Math.max(to - from, 2 * scale), foot - top);
  }

  drawScores(f, x, y);

  for (const [name, dash] of [["enter", [6, 5]], ["leave", [2, 5]]]) {
    if (typeof facts[name] !== "number") continue;
    ink.setLineDash(dash.map((d) => d * scale));
    ink.strokeStyle = "#eceff2b0";
    ink.beginPath(); ink.moveTo(left, y(facts[name])); ink.lineTo(right, y(facts[name])); ink.stroke();
    ink.setLineDash([]);
    if (name === "enter") {
      const text = `alerts open at ${facts.enter}`;
      ink.textAlign = "left";
      ink.fillStyle = "#12161acc";
      ink.fillRect(left + 4 * scale, y(facts.enter) - 17 * scale, ink.measureText(text).width + 8 * scale, 15 * scale);
      ink.fillStyle = "#eceff2d0";
      ink.fillText(text, left + 8 * scale, y(facts.enter) - 5 * scale);
    }
  }
  drawHover(f, x, y);
}

/** Per pixel column the highest score and the gravest state; nothing where there was nothing. */
function drawScores({ scale, left, right, foot, now }, x, y) {
  const columns = []; // [x, score or null, state]
  let first = points.length;
  while (first > 0 && points[first - 1][0] >= now - rangeS) first--;
  let lastS = -Infinity;
  for (let k = first; k < points.length; k++) {
    const [s, score, state] = points[k];
    const column = Math.round(x(s));
    const last = columns[columns.length - 1];
    if (last && last[0] === column) {
      if (score !== null && (last[1] === null || score > last[1])) last[1] = score;
      last[2] = Math.max(last[2], state);
    } else {
      columns.push([column, score, state, s - lastS > GAP_S]);
    }
    lastS = s;
  }
  ink.lineJoin = "round";
  ink.lineWidth = 2 * scale;
  for (let k = 0; k < columns.length; k++) {
    const [at, score, state, afterGap] = columns[k];
    const colour = COLOURS[state] ?? COLOURS[0];
    const next = columns[k + 1];
    const wide = next && !next[3] ? Math.max(next[0] - at, 1) : Math.max(scale, 1);
    if (score === null || state === 0) { // a stub says that time passed
      ink.fillStyle = "#868c9270";
      ink.fillRect(at, foot - 4 * scale, wide, 4 * scale);
      continue;
    }
    ink.fillStyle = `${colour}2e`;
    ink.fillRect(at, y(score), wide, foot - y(score));
    const before = columns[k - 1];
    ink.strokeStyle = colour;
    ink.beginPath();
    if (before && !afterGap && before[1] !== null && before[2] !== 0) ink.moveTo(before[0], y(before[1]));
    else ink.moveTo(at - scale, y(score));
    ink.lineTo(at, y(score));
    ink.stroke();
  }
}

function drawHover(f, x, y) {
  const box = $("hover");
  if (pointer === null || !points.length) { box.hidden = true; return; }
  const at = Math.min(Math.max(pointer * f.scale, f.left), f.right);
  const s = f.now - ((f.right - at) / (f.right - f.left)) * rangeS;
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < s) low = middle + 1; else high = middle;
  }
  const near = [points[low], points[low - 1]].filter(Boolean)
    .sort((a, b) => Math.abs(a[0] - s) - Math.abs(b[0] - s))[0];
  const known = Math.abs(near[0] - s) <= Math.max(GAP_S / 2, (2 * rangeS) / (f.right - f.left));
  ink.fillStyle = "#eceff260";
  ink.fillRect(known ? x(near[0]) : at, f.top, f.scale, f.foot - f.top);
  say(box, !known ? `${clockOf(Math.max(s, 0))}   nothing analysed`
    : `${clockOf(near[0])}   ${near[1] === null || near[2] === 0 ? "no score" : scoreOf(near[1])}   ${STATES[near[2]] ?? ""}`);
  box.hidden = false;
  const room = line.clientWidth - box.offsetWidth - 6;
  box.style.left = `${Math.max(Math.min(at / f.scale + 10, room), 0)}px`;
}

line.addEventListener("pointermove", (event) => { pointer = event.offsetX; drawLine(); });
line.addEventListener("pointerdown", (event) => { pointer = event.offsetX; drawLine(); });
line.addEventListener("pointerleave", () => { pointer = null; drawLine(); });
for (const button of document.querySelectorAll("[data-range]")) {
  button.addEventListener("click", () => {
    rangeS = Number(button.dataset.range);
    for (const other of document.querySelectorAll("[data-range]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    drawLine();
  });
}
addEventListener("resize", () => { lineChanged = true; });

/* -- connection ---------------------------------------------------------------------------------- */

let channel = null;
let tries = 0;
let silenceTimer = 0;

function connect() {
  const opened = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/watch`);
  channel = opened;
  opened.binaryType = "arraybuffer";
  opened.addEventListener("open", () => { if (document.hidden) tell({ pictures: false }); });
  opened.addEventListener("message", (event) => { if (channel === opened) hear(event.data); });
  opened.addEventListener("close", (event) => { if (channel === opened) lost(event); });
  silenceTimer = setTimeout(() => lost(null), 3 * SILENCE_MS);
}

function tell(message) {
  if (channel?.readyState === WebSocket.OPEN) channel.send(JSON.stringify(message));
}

async function hear(data) {
  const receivedMs = performance.now();
  const from = channel;
  clearTimeout(silenceTimer);
  silenceTimer = setTimeout(() => lost(null), SILENCE_MS);
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  if (!connected) begin();
  served = header.status;
  servedSince = receivedMs - 1000 * header.lasts_s;
  const ended = header.over && !over;
  over = header.over;
  if (header.facts) showFacts(header.facts);
  if (header.stream_s !== undefined && header.picture === "new") clock = [header.stream_s + header.age_s, receivedMs];
  if (header.points) addPoints(header.points);
  if (clock === null && points.length) clock = [header.now_s ?? points[points.length - 1][0], receivedMs];
  if (header.alerts) showAlerts(header.alerts, header.gone);
  if (header.counters) showCounters(header.counters, header.server_s);
  let fresh = false;
  if (ended) {
    endNote();
    $("keys").close();
    showRecording();
  }
  if (header.picture === "none" || over) {
    late = null;
    withdraw();
  } else if (header.picture === "new" && !document.hidden) {
    try {
      fresh = await draw(header, new Uint8Array(data, 4 + length), receivedMs);
    } catch {
      withdraw();
      tooLate("a picture that this browser cannot read");
    }
  }
  showStatus();
  if (channel === from) tell({ ack: header.sequence, drawn: fresh });
}

/** What the last connection told is not of this one: the server may be another. */
function begin() {
  connected = true;
  tries = 0;
  drawn = 0;
  arrivedMs = 0;
  late = null;
  counted = null;
  clock = null;
  points = [];
  alertsKnown = false;
  for (const { element } of cards.values()) element.remove();
  cards.clear();
  showAlerts([], []);
  alertsKnown = false;
  showRecording();
}

function lost(event) {
  clearTimeout(silenceTimer);
  const gone = channel;
  channel = null;
  gone?.close();
  connected = false;
  late = null;
  lostBecause = event?.reason || "the session does not answer. Trying again";
  withdraw();
  showRecording();
  for (const id of ["delay", "screen", "rate"]) say($(id), "\u2013");
  showStatus();
  setTimeout(retry, RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
}

/** A refused WebSocket does not say why, so ask in a way that does. */
async function retry() {
  if (tries > 1) {
    try {
      const answer = await fetch("healthz", { cache: "no-store", signal: AbortSignal.timeout(SILENCE_MS) });
      if (answer.status === 403) lostBecause = "the session has a new token: open the address that it printed";
    } catch { /* it is gone, as said */ }
    showStatus();
  }
  connect();
}

document.addEventListener("visibilitychange", () => {
  tell({ pictures: !document.hidden });
  if (document.hidden) withdraw();
});

/* -- what a watcher can do ----------------------------------------------------------------------- */

/** Tell what became of something: the newest alone, beside what stays until the page is left. */
function toast(text, { bad = false, seconds = 4 } = {}) {
  for (const passing of $("toasts").querySelectorAll("p:not([data-stays])")) passing.remove();
  const note = document.createElement("p");
  note.textContent = text;
  note.classList.toggle("bad", bad);
  $("toasts").append(note);
  if (seconds < Infinity) setTimeout(() => note.remove(), 1000 * seconds);
  else note.dataset.stays = "";
}

function ask(kind, note = "", at = shownAt) {
  if (!connected || over) return notKept(note);
  tell({ ask: kind, note, at_s: at });
  const moment = at === null ? "" : ` at ${clockOf(at)}`;
  // where a snapshot is, the session says once it is there
  toast(kind === "mark" ? `Marked${moment}${note ? `: ${note}` : ""}` : `Snapshot asked for${moment}`);
}

function notKept(note = "") {
  const why = over ? "The session is over" : "No connection";
  if (note) toast(`${why}. This note was not kept: ${note}`, { bad: true, seconds: Infinity }); // to be copied
  else toast(`${why}: nothing was kept`, { bad: true });
}

let notingAt = null;

function startNote() {
  if (!connected || over) return notKept();
  notingAt = shownAt ?? streamNow(); // the moment of the key, not of the last word
  say($("noting-at"), notingAt === null ? "" : clockOf(notingAt));
  $("noting-text").value = "";
  $("noting").returnValue = "";
  $("noting").showModal();
  $("noting-text").focus();
}
/** The session is over: nothing may stand before that, and what was typed is not lost. */
function endNote() {
  if (!$("noting").open) return;
  $("noting").close("");
  notKept($("noting-text").value.trim());
}
$("noting").addEventListener("close", () => {
  if ($("noting").returnValue === "mark") ask("mark", $("noting-text").value.trim(), notingAt);
});

let audio = null;
let sounding = false; // off until someone wants it

function toggleSound() {
  sounding = !sounding;
  if (sounding) {
    audio ??= new AudioContext();
    audio.resume();
    tone();
    setTimeout(() => { // nobody may wait for a tone that cannot come
      if (sounding && audio.state !== "running") toast("This browser plays no sound here", { bad: true, seconds: 12 });
    }, 1000);
  }
  $("sound").setAttribute("aria-pressed", String(sounding));
  say($("sound-word"), sounding ? "Sound on" : "Sound off");
}

/** Two soft notes, once, where an alert opens. */
function tone() {
  if (!sounding || audio === null) return;
  const start = audio.currentTime + 0.02;
  for (const [hertz, after] of [[523.25, 0], [659.25, 0.16]]) {
    const wave = audio.createOscillator(), loud = audio.createGain();
    wave.frequency.value = hertz;
    loud.gain.setValueAtTime(0, start + after);
    loud.gain.linearRampToValueAtTime(0.12, start + after + 0.03);
    loud.gain.exponentialRampToValueAtTime(0.0006, start + after + 0.5);
    wave.connect(loud).connect(audio.destination);
    wave.start(start + after);
    wave.stop(start + after + 0.55);
  }
}

$("mark").addEventListener("click", () => ask("mark"));
$("note").addEventListener("click", startNote);
$("snapshot").addEventListener("click", () => ask("snapshot"));
$("sound").addEventListener("click", toggleSound);
$("show-keys").addEventListener("click", () => $("keys").showModal());

const KEYS = {
  m: () => ask("mark"),
  n: startNote,
  s: () => ask("snapshot"),
  a: toggleSound,
  " ": toggleSound,
  "?": () => $("keys").showModal(),
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
};
addEventListener("keydown", (event) => {
  const dialog = document.querySelector("dialog[open]");
  if (dialog && event.key === "Escape") { // as browsers do, of keys that they count as a person's
    event.preventDefault();
    dialog.close("");
  }
  if (event.ctrlKey || event.altKey || event.metaKey || dialog) return;
  if (event.key === " " && event.target instanceof HTMLButtonElement) return; // it presses the button
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || (event.repeat && !event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  act();
});

/* -- begin --------------------------------------------------------------------------------------- */

if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname);

setInterval(() => {
  say($("wall"), new Date().toLocaleTimeString("en-GB"));
  showSince();
  for (const entry of cards.values()) if (entry.card.closed_s === null) lengthOfCard(entry);
  showAlarm();
}, 500);
setInterval(() => { if (!document.hidden && (lineChanged || clock !== null)) drawLine(); }, 100);
say($("wall"), new Date().toLocaleTimeString("en-GB"));
withdraw();
showStatus();
connect();
