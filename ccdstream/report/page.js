"use strict";
(() => {
  const $ = (name) => document.getElementById(name);
  const data = JSON.parse($("data").textContent);
  const video = $("video"), plot = $("plot"), hover = $("hover");
  const end = Math.max(data.end, data.start);
  const tiles = [...document.querySelectorAll("#strip button")].map((button) => [Number(button.dataset.seek), button]);
  const cards = data.alerts.map((alert) => $("alert-" + alert[0]));
  const speeds = [0.25, 0.5, 1, 2, 4];
  let now = data.start, lit = -1, shownTile = null, dragging = false;

  const clock = (seconds, digits = 2) => {
    const scale = 10 ** digits, units = Math.floor(Math.abs(seconds) * scale + 0.5);
    const whole = Math.floor(units / scale), two = (n) => String(n).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minute = Math.floor(whole / 60) % 60;
    const text = hours ? `${hours}:${two(minute)}:${two(whole % 60)}` : `${minute}:${two(whole % 60)}`;
    return (seconds < 0 && units ? "-" : "") + text + (digits ? "." + String(units % scale).padStart(digits, "0") : "");
  };
  const share = (seconds) => Math.min(Math.max((seconds - data.start) / data.span, 0), 1);
  const column = (seconds) => Math.min(Math.floor(share(seconds) * data.score.length), data.score.length - 1);
  const said = (seconds) => {
    const at = column(seconds), state = data.state[at];
    if (data.gaps.some(([from, to]) => seconds > from && seconds < to)) return "no signal";
    if (state === "-") return "no frames";
    const name = data.states[Number(state)];
    return name === "UNCLEAR" ? name : `${name} ${(data.score[at] / 1000).toFixed(3)}`;
  };

  const wall = (seconds) => (data.wall === null ? "" : new Date(1000 * (data.wall + seconds)).toISOString().slice(11, 19));
  const show = (seconds) => {
    now = Math.min(Math.max(seconds, data.start), end);
    const x = `${100 * share(now)}%`;
    $("cursor").setAttribute("x1", x);
    $("cursor").setAttribute("x2", x);
    const words = [clock(now), wall(now), said(now)].filter(Boolean).join(" ");
    $("now").textContent = words;
    plot.setAttribute("aria-valuenow", now.toFixed(2));
    plot.setAttribute("aria-valuetext", words);
    const half = data.frame / 2;
    const inside = data.alerts.findIndex((alert) => now >= alert[1] - half && now <= alert[2] + half);
    if (inside !== lit) {
      if (cards[lit]) cards[lit].classList.remove("lit");
      if (cards[inside]) cards[inside].classList.add("lit");
      lit = inside;
    }
    let tile = null;
    for (const [at, button] of tiles) if (at <= now + half) tile = button;
    if (tile !== shownTile) {
      if (shownTile) shownTile.removeAttribute("aria-current");
      if (tile) tile.setAttribute("aria-current", "true");
      shownTile = tile;
    }
  };
  const seek = (seconds, play = false) => {
    show(seconds);
    if (!video) return;
    // a little into the frame: its own time, rounded, may be the end of the one before
    video.currentTime = Math.max(now - data.offset + Math.min(data.frame / 10, 0.001), 0);
    if (play) video.play().catch(() => {});
  };
  const seekIn = (clip, seconds, play) => {
    show(seconds);
    clip.currentTime = Math.max(now - Number(clip.dataset.offset) + Math.min(data.frame / 10, 0.001), 0);
    if (play) clip.play().catch(() => {});
  };
  const toAlert = (step) => {
    const at = step > 0
      ? data.alerts.findIndex((alert) => alert[1] > now + 0.01)
      : data.alerts.findLastIndex((alert) => alert[1] < now - 0.5);
    if (at < 0) return;
    seek(data.alerts[at][1]);
    reveal(cards[at]);
  };
  const reveal = (card) => {
    const list = $("alerts");
    if (list && card && list.scrollHeight > list.clientHeight + 1) {
      list.scrollTop = card.offsetTop - list.offsetTop;
    }
  };

  // -- the line ----------------------------------------------------------------------------------
  const timeAt = (event) => {
    const box = plot.getBoundingClientRect();
    return data.start + Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * data.span;
  };
  const point = (event) => {
    const seconds = Math.min(timeAt(event), end), x = `${100 * share(seconds)}%`;
    $("hair").setAttribute("x1", x);
    $("hair").setAttribute("x2", x);
    $("hair").classList.add("shown");
    hover.textContent = [clock(seconds), wall(seconds), said(seconds)].filter(Boolean).join("  ");
    hover.hidden = false;
    const box = plot.getBoundingClientRect(), wide = hover.offsetWidth;
    hover.style.left = `${Math.min(Math.max(event.clientX - box.left - wide / 2, 0), box.width - wide)}px`;
  };
  plot.setAttribute("aria-valuemin", data.start.toFixed(2));
  plot.setAttribute("aria-valuemax", end.toFixed(2));
  plot.addEventListener("pointermove", (event) => {
    point(event);
    if (dragging) seek(timeAt(event));
  });
  plot.addEventListener("pointerleave", () => {
    hover.hidden = true;
    $("hair").classList.remove("shown");
  });
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest("a")) return;
    dragging = true;
    plot.setPointerCapture(event.pointerId);
    seek(timeAt(event));
  });
  for (const name of ["pointerup", "pointercancel"]) plot.addEventListener(name, () => { dragging = false; });

  // -- what is clicked ---------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const mark = event.target.closest("[data-alert]");
    if (mark) {
      event.preventDefault();
      const at = data.alerts.findIndex((alert) => alert[0] === Number(mark.dataset.alert));
      seek(data.alerts[at][1]);
      reveal(cards[at]);
      return;
    }
    const button = event.target.closest("[data-seek]");
    if (!button) return;
    const clip = video ? null : button.closest(".card")?.querySelector(".clip");
    const seconds = Number(button.dataset.seek), play = button.dataset.play === "yes";
    if (clip) seekIn(clip, seconds, play);
    else seek(seconds, play);
    const shown = video || clip || plot, box = shown.getBoundingClientRect();
    if (box.bottom < 80 || box.top > innerHeight - 80) shown.scrollIntoView({ block: "center" });
  });

  // -- the video ---------------------------------------------------------------------------------
  const play = () => (video.paused ? video.play().catch(() => {}) : video.pause());
  const nextSpeed = () => {
    const at = speeds.indexOf(video.playbackRate);
    video.playbackRate = speeds[(at + 1) % speeds.length];
    $("speed").querySelector("b").textContent = String(video.playbackRate);
  };
  if (video) {
    const follow = () => {
      if (!video.seeking) show(video.currentTime + data.offset);
      if (!video.paused && !video.ended) requestAnimationFrame(follow);
    };
    for (const name of ["play", "seeked", "pause", "timeupdate"]) video.addEventListener(name, follow);
    const reach = () => {
      // Chromium ends a video that starts late before its last frames
      const last = video.duration + data.offset;
      if (last > end - 0.5) return;
      $("short").textContent = `This browser shows the video up to ${clock(last, 0)} only, because the recording starts at ${clock(data.start, 0)}. Another player shows all of it.`;
      $("short").hidden = false;
    };
    if (video.readyState > 0) reach();
    else video.addEventListener("loadedmetadata", reach);
    const sources = video.querySelectorAll("source");
    sources[sources.length - 1].addEventListener("error", () => {
      $("lost").hidden = false;
      video.hidden = true;
    });
    $("previous").addEventListener("click", () => toAlert(-1));
    $("next").addEventListener("click", () => toAlert(1));
    $("play").addEventListener("click", play);
    $("speed").addEventListener("click", nextSpeed);
    for (const name of ["previous", "next"]) $(name).disabled = data.alerts.length === 0;
  }
  for (const clip of document.querySelectorAll(".clip")) {
    clip.poster = [...clip.closest(".card").querySelectorAll("img")].pop()?.src ?? ""; // not a black box
    clip.addEventListener("timeupdate", () => {
      if (!clip.paused) show(clip.currentTime + Number(clip.dataset.offset));
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const onButton = event.target.closest("button, a, video");
    const step = event.shiftKey ? 1 : 5;
    const act = {
      ArrowLeft: () => seek(now - step),
      ArrowRight: () => seek(now + step),
      Home: () => event.target === plot && seek(data.start),
      End: () => event.target === plot && seek(end),
      ",": () => seek(now - data.frame),
      ".": () => seek(now + data.frame),
      n: () => toAlert(1),
      p: () => toAlert(-1),
      s: () => (video ? nextSpeed() : false),
      " ": () => (video && !onButton ? play() : false),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act && act() !== false) event.preventDefault();
  });
  show(data.start);
})();
