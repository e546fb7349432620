"use strict";
(() => {
  const { runs } = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...inner) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...inner);
    return element;
  };
  const steps = [...new Set(runs.flatMap((run) => run.rounds.map((round) => round.step)))].sort((a, b) => a - b);
  const number = (value) => value.toLocaleString("en");
  const part = encodeURIComponent;

  // the theme: that of the system, until the button is pressed
  const theme = $("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(isDark()));
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  showTheme();

  // every clip: its run, round and slot
  const clips = runs.flatMap((run, r) => run.rounds.flatMap((round) => round.clips.map(
    ([slot, peak, rms, clipped, hasPicture]) => ({
      r, run, round, slot: run.slots[slot], step: round.step, peak, rms, clipped,
      audio: `${run.samples}/${part(round.folder)}/${part(run.slots[slot].id)}${run.ending}`,
      picture: run.embedded[run.slots[slot].id] ? run.embedded[run.slots[slot].id] : hasPicture ? `${run.thumbnails}/${part(round.folder)}/${part(run.slots[slot].id)}.png` : null,
    }))));
  const isFolder = runs[0].isFolder; // of sounds, each a slot of its own
  const track = (clip) => (isFolder ? "" : `${clip.r}/${clip.slot.id}`); // one slot of one run
  const tracks = Map.groupBy ? Map.groupBy(clips, track) : clips.reduce((found, clip) =>
    found.set(track(clip), [...(found.get(track(clip)) || []), clip]), new Map());

  // the player
  const audio = $("audio");
  let playing = null, before = null;
  const name = (clip) => (runs.length > 1 ? `${clip.run.name} · ` : "") +
    (isFolder ? `${clip.slot.label} · ${clip.slot.id}${clip.run.ending}`
      : `${clip.slot.label} · slot ${clip.slot.id.split("_")[0]} · step ${number(clip.step)}`);
  const mark = () => document.querySelectorAll(".clip").forEach((button) => {
    const isChosen = button.clip === playing;
    button.classList.toggle("chosen", isChosen);
    button.classList.toggle("playing", isChosen && !audio.paused);
    button.setAttribute("aria-pressed", String(isChosen && !audio.paused));
  });
  const neighbour = (by) => {
    const row = playing ? tracks.get(track(playing)) : [];
    return row[row.indexOf(playing) + by];
  };
  const play = (clip) => {
    if (!clip) return;
    if (clip !== playing) {
      before = playing;
      playing = clip;
      audio.src = clip.audio;
      $("playing").textContent = name(clip);
      $("playing").classList.remove("wrong");
    }
    $("player").hidden = false;
    $("earlier").disabled = !neighbour(-1);
    $("later").disabled = !neighbour(1);
    $("before").disabled = !before;
    audio.currentTime = 0;
    audio.play().catch((error) => { if (error.name !== "AbortError") failed(); });
    mark();
  };
  const failed = () => {
    $("playing").textContent = `${name(playing)}: the file ${decodeURIComponent(playing.audio)} is missing or cannot be played`;
    $("playing").classList.add("wrong");
  };
  audio.addEventListener("error", failed);
  for (const event of ["play", "pause", "ended"]) audio.addEventListener(event, mark);
  audio.addEventListener("ended", () => { if ($("through").checked) play(neighbour(1)); });
  $("earlier").addEventListener("click", () => play(neighbour(-1)));
  $("later").addEventListener("click", () => play(neighbour(1)));
  $("before").addEventListener("click", () => play(before));
  document.addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "x" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) play(before);
  });

  // the sounds, filtered
  const options = (select, values) => select.append(...values.map(([value, text]) => make("option", { value, textContent: text })));
  const shownSteps = (inRange) => {
    const density = $("density").value, last = inRange.length - 1;
    if (density === "all" || last < 8) return density === "ends" ? inRange.filter((_, i) => i === 0 || i === last) : inRange;
    const wanted = density === "ends" ? [0, last] : [...Array(8).keys()].map((i) => Math.round((last + 1) ** (i / 7)) - 1);
    let at = -1; // each later than the one before, as the first of the powers are equal
    return wanted.map((index) => inRange[at = Math.min(last, Math.max(index, at + 1))]);
  };
  const button = (clip) => {
    const levels = clip.peak === null ? "" : `peak ${clip.peak.toFixed(1)} dB `;
    const about = make("span", { className: "about" }, make("b", { textContent: isFolder ? clip.slot.id : number(clip.step) }), levels);
    if (clip.clipped > 0) about.append(make("span", { className: "wrong", textContent: `${clip.clipped} % over` }));
    const picture = clip.picture
      ? make("img", { loading: "lazy", src: clip.picture, alt: "" })
      : make("span", { className: "none", textContent: "no picture" });
    const element = make("button", { type: "button", className: "clip", clip }, picture, about);
    element.title = clip.rms === null ? name(clip) + (clip.slot.seed ? `, seed ${clip.slot.seed}` : "") : `${name(clip)}, RMS ${clip.rms} dBFS, ${clip.clipped || 0} % over full scale`;
    element.setAttribute("aria-label", `play ${name(clip)}`);
    element.addEventListener("click", () => (clip === playing && !audio.paused ? audio.pause() : play(clip)));
    return element;
  };
  const show = () => {
    const run = $("by-run") ? $("by-run").value : "", slot = $("by-slot").value, label = $("by-label").value;
    const from = Number($("from-step").value), to = Number($("to-step").value);
    const chosen = clips.filter((clip) => (run === "" || clip.r === Number(run)) && (slot === "" || clip.slot.id === slot) &&
      (label === "" || clip.slot.label === label) && clip.step >= from && clip.step <= to);
    const kept = new Map(runs.map((one, r) => // the rounds of each run, whose steps may differ
      [r, new Set(shownSteps([...new Set(chosen.filter((clip) => clip.r === r).map((clip) => clip.step))]))]));
    const visible = chosen.filter((clip) => kept.get(clip.r).has(clip.step));
    const bySlot = new Map();
    for (const clip of visible) {
      const box = isFolder ? clip.slot.label : clip.slot.id;
      if (!bySlot.has(box)) bySlot.set(box, new Map());
      const strips = bySlot.get(box);
      strips.set(clip.r, [...(strips.get(clip.r) || []), clip]);
    }
    $("slots").replaceChildren(...[...bySlot].sort(([a], [b]) => (a < b ? -1 : 1)).map(([id, strips]) => {
      const first = [...strips.values()][0][0].slot;
      const seeds = new Set([...strips.values()].map((strip) => strip[0].slot.seed));
      const title = make("h3", {}, first.label, make("small", { textContent: isFolder ? "" : `slot ${id.split("_")[0]}` +
        (first.seed && seeds.size === 1 ? `, seed ${first.seed}` : "") }));
      const box = make("section", { className: "slot" }, title);
      box.setAttribute("aria-label", isFolder ? first.label : `${first.label}, slot ${id.split("_")[0]}`);
      for (const [r, strip] of strips) {
        if (runs.length > 1) box.append(make("div", { className: "strip-name", textContent: runs[r].name }));
        box.append(make("div", { className: "strip" }, ...strip.map(button)));
      }
      return box;
    }));
    $("count").textContent = `${number(visible.length)} of ${number(clips.length)} sounds`;
    mark();
  };
  const move = (event) => {
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
    const from = event.target.closest(".clip");
    if (!from || (!across && !down)) return;
    event.preventDefault();
    const strips = [...document.querySelectorAll(".strip")], strip = from.parentElement;
    const row = strips[strips.indexOf(strip) + down], at = [...strip.children].indexOf(from) + across;
    if (row && at >= 0) (row.children[Math.min(at, row.children.length - 1)] || from).focus();
  };
  if (clips.length) {
    if ($("by-run")) options($("by-run"), runs.map((run, r) => [r, run.name]));
    const slots = new Map(runs.flatMap((run) => run.slots.map((slot) => [slot.id, slot.label])));
    const cut = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);
    options($("by-slot"), [...slots].sort().map(([id, label]) => [id, isFolder ? id : `${id.split("_")[0]} ${cut(label)}`]));
    options($("by-label"), [...new Set(slots.values())].sort().map((label) => [label, cut(label)]));
    options($("from-step"), steps.map((step) => [step, number(step)]));
    options($("to-step"), steps.map((step) => [step, number(step)]));
    $("to-step").lastElementChild.defaultSelected = true;
    $("filters").addEventListener("change", show);
    $("filters").addEventListener("reset", () => setTimeout(show));
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("slots").addEventListener("keydown", move);
    show();

    // the pictures of a round
    const rounds = runs.flatMap((run) => run.rounds.map((round) => ({ run, round }))).reverse();
    options($("round"), rounds.map(({ run, round }, i) => [i, `${runs.length > 1 ? `${run.name}, ` : ""}step ${number(round.step)}`]));
    const titles = { "spectrograms.png": "Sounds of the round", "reverse_process.png": "Reverse process of the first sound: its estimate from noise (left) to audio (right)" };
    const showRound = () => {
      const { run, round } = rounds[$("round").value];
      $("round-pictures").replaceChildren(...[...round.pictures].reverse().flatMap((file) => [
        make("h3", { textContent: titles[file] }),
        make("div", { className: "scroll", tabIndex: 0 }, make("img", { loading: "lazy", alt: titles[file], src: `${run.samples}/${part(round.folder)}/${part(file)}` })),
      ]));
    };
    $("round").addEventListener("change", showRound);
    showRound();
  }
  document.querySelectorAll(".choose-picture").forEach((select) =>
    select.addEventListener("change", () => { $(select.dataset.target).src = select.value; }));

  // reading the curves
  document.querySelectorAll(".chart").forEach((chart) => {
    const data = chart.dataset, lines = [...chart.querySelectorAll("polyline")], cursor = chart.querySelector(".cursor");
    const cells = [...chart.parentElement.querySelectorAll(".value")], last = chart.parentElement.querySelector("tr th:nth-child(2)");
    const [x0, x1] = data.x.split(" ").map(Number), [y0, y1] = data.y.split(" ").map(Number);
    const left = Number(data.left), right = Number(data.right), top = Number(data.top), bottom = Number(data.bottom);
    const value = (y) => {
      const share = (bottom - y) / (bottom - top);
      return data.log === "1" ? y0 * (y1 / y0) ** share : y0 + (y1 - y0) * share;
    };
    let at = right;
    const read = (x) => {
      at = Math.min(right, Math.max(left, x));
      const near = lines.map((line) => [...line.points].reduce((a, b) => (Math.abs(b.x - at) < Math.abs(a.x - at) ? b : a)));
      near.forEach((point, i) => { cells[i].textContent = value(point.y).toPrecision(3); });
      last.textContent = `at ${number(Math.round(x0 + (x1 - x0) * (at - left) / (right - left)))}`;
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.setAttribute("visibility", "visible");
    };
    const leave = () => {
      cells.forEach((cell) => { cell.textContent = cell.dataset.last; });
      last.textContent = "last";
      cursor.setAttribute("visibility", "hidden");
    };
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      read((event.clientX - box.left) * chart.viewBox.baseVal.width / box.width);
    });
    chart.addEventListener("pointerleave", leave);
    chart.addEventListener("blur", leave);
    chart.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); read(at + by * (right - left) / 50); }
    });
  });

  // finding a setting
  $("find").addEventListener("input", () => {
    const wanted = $("find").value.trim().toLowerCase();
    document.querySelectorAll(".settings tr").forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
  });
})();
