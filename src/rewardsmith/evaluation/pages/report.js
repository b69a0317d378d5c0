"use strict";
// The browser of examples and the filter of slices. Every number comes worked out; texts from the data enter the page through textContent only.
(() => {
  const ITEM = 84; // height of a row of the list in pixels, as the style has it
  const OVERSCAN = 6;
  const byId = (id) => document.getElementById(id);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const count = (number) => number.toLocaleString("en-US");
  const signed = (number) => (number > 0 ? "+" : "") + number.toFixed(3);

  // --- slices -------------------------------------------------------------------------------------------------------------------------------------------

  for (const part of document.querySelectorAll(".slices")) {
    const rows = [...part.querySelectorAll("tbody tr")];
    const table = part.querySelector("table");
    const more = part.querySelector(".more");
    const find = part.querySelector(".find");
    const input = find.querySelector("input");
    const few = Number(part.dataset.few);
    // All that are flagged are shown from the start.
    const names = rows.map((row) => row.querySelector("th").textContent.toLowerCase());
    rows.forEach((row, i) => row.classList.toggle("rest", i >= few && !row.classList.contains("flagged")));
    if (rows.length > few) {
      table.classList.add("few");
      more.hidden = find.hidden = false;
    }
    more.addEventListener("click", () => {
      table.classList.remove("few");
      more.hidden = true;
    });
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => names[i].includes(word));
        shown += row.hidden ? 0 : 1;
      });
      if (words.length) {
        table.classList.remove("few");
        more.hidden = true;
      }
      find.querySelector("output").textContent = words.length ? `${count(shown)} of ${count(rows.length)}` : "";
    });
  }

  // --- examples -----------------------------------------------------------------------------------------------------------------------------------------

  const packed = byId("packed");
  if (packed) unpack(packed);

  async function unpack(source) {
    const notice = byId("packing");
    const say = (text) => {
      notice.textContent = text;
      notice.hidden = !text;
    };
    if (typeof DecompressionStream === "undefined") {
      say("This browser cannot unpack the examples (it lacks DecompressionStream): use Chromium 80, Firefox 113, Safari 16.4 or later.");
      return;
    }
    say("Unpacking the examples ...");
    try {
      const text = atob(source.textContent);
      const bytes = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
      source.textContent = "";
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      browse(await new Response(stream).json());
      say("");
    } catch (error) {
      say(`The examples cannot be unpacked: ${error.message}`);
    }
  }

  // Places in a row's scores; see examples.py.
  const [CHOSEN, REJECTED, MARGIN, PROBABILITY, TOKENS_CHOSEN, TOKENS_REJECTED, CUT_CHOSEN, CUT_REJECTED] = [0, 1, 2, 3, 4, 5, 6, 7];

  function browse(data) {
    const { models, rows, texts, filters, temperatures } = data;
    const several = models.length > 1;
    const state = { model: 0, preset: "all", order: "data", query: "", column: "", value: "", found: [], at: -1, words: false };
    const scores = (row) => row.s[state.model];
    const isCut = (row) => Boolean(scores(row)[CUT_CHOSEN] || scores(row)[CUT_REJECTED]);
    const isWrong = (row) => !row.tie && scores(row)[MARGIN] < 0;
    const isDivided = (row) => {
      const signs = row.s.filter(Boolean).map((one) => Math.sign(one[MARGIN]));
      return !row.tie && signs.some((sign) => sign !== signs[0]);
    };
    const presets = [
      ["all", "All", () => true, null],
      ["wrong", "Wrong", isWrong, null],
      ["confident", "Most confident wrong", isWrong, "worst"],
      ["closest", "Closest", () => true, "closest"],
      ["ties", "Equal scores", (row) => !row.tie && scores(row)[MARGIN] === 0, null],
      ["cut", "Cut", isCut, null],
      ["labelled", "Labelled ties", (row) => Boolean(row.tie), null],
      ["divided", "Models disagree", isDivided, "spread"],
      ["words", "With word shading", (row) => Boolean(row.a && row.a[state.model]), null],
    ];
    // Shown even when empty: that there are none is worth knowing.
    const always = new Set(["all", "wrong", "confident", "closest", "ties", "cut"]);
    if (several) always.add("divided");
    const spread = (row) => {
      const margins = row.s.filter(Boolean).map((one) => one[MARGIN]);
      return Math.max(...margins) - Math.min(...margins);
    };
    const orders = [
      ["data", "as in the data", null],
      ["worst", "lowest margin first", (a, b) => scores(a)[MARGIN] - scores(b)[MARGIN]],
      ["best", "highest margin first", (a, b) => scores(b)[MARGIN] - scores(a)[MARGIN]],
      ["closest", "closest first", (a, b) => Math.abs(scores(a)[MARGIN]) - Math.abs(scores(b)[MARGIN])],
    ];
    if (several) orders.push(["spread", "widest disagreement first", (a, b) => spread(b) - spread(a)]);

    const list = byId("list"), spacer = byId("spacer"), pane = byId("pair"), query = byId("query"), found = byId("found");
    const select = { model: byId("model"), column: byId("column"), value: byId("value"), order: byId("order") };
    const chips = new Map();

    const plain = (text) => text.normalize("NFKC").toLowerCase();
    const turnsOf = (prompt, title) => (prompt === undefined ? [] : typeof prompt === "number" ? [[title, prompt]] : prompt);
    const promptText = (row) => [...turnsOf(row.p), ...turnsOf(row.q)].map(([role, place]) => texts[place]).join("\n");
    const haystacks = [];
    function haystack(i) {
      if (haystacks[i] === undefined) {
        const row = rows[i];
        const parts = [row.id, promptText(row), ...[row.c, row.r].filter((place) => place !== undefined).map((place) => texts[place]), ...Object.values(row.m || {})];
        haystacks[i] = plain(parts.join("\n"));
      }
      return haystacks[i];
    }
    function terms() {
      const found = [];
      for (const match of plain(state.query).matchAll(/"([^"]*)"?|(\S+)/g)) found.push(match[1] ?? match[2]);
      return found.filter(Boolean);
    }

    function fill(control, options) {
      control.replaceChildren(...options.map(([value, text]) => {
        const option = element("option", "", text);
        option.value = value;
        return option;
      }));
    }

    function select_from(preset) {
      const wanted = terms();
      const test = presets.find(([name]) => name === preset)[2];
      const picked = [];
      for (let i = 0; i < rows.length; i++) {
        const row = rows[i];
        if (!scores(row) || !test(row)) continue;
        if (state.column && state.value && (row.m || {})[state.column] !== state.value) continue;
        if (wanted.length && !wanted.every((word) => haystack(i).includes(word))) continue;
        picked.push(i);
      }
      return picked;
    }

    // Filter, sort and draw; the pair that was shown stays shown where it is among the found.
    function refresh(keep) {
      const before = keep ?? state.found[state.at];
      const compare = orders.find(([name]) => name === state.order)[2];
      state.found = select_from(state.preset);
      if (compare) state.found.sort((a, b) => compare(rows[a], rows[b]) || a - b);
      const total = rows.filter((row) => scores(row)).length;
      found.textContent = `${count(state.found.length)} of ${count(total)} pairs`;
      for (const [name, button] of chips) button.setAttribute("aria-pressed", String(name === state.preset));
      spacer.style.setProperty("height", `${state.found.length * ITEM}px`);
      const at = state.found.indexOf(before);
      show(at >= 0 ? at : state.found.length ? 0 : -1, { reveal: true });
    }

    function recount() {
      for (const [name, button] of chips) {
        const test = presets.find(([one]) => one === name)[2];
        const number = rows.filter((row) => scores(row) && test(row)).length;
        button.lastChild.textContent = name === "closest" || name === "confident" ? "" : count(number);
        button.hidden = !number && !always.has(name);
      }
    }

    const word_for = (row, one) => (row.tie ? "labelled tie" : one[MARGIN] > 0 ? "right" : one[MARGIN] < 0 ? "wrong" : "equal scores");
    const class_for = (row, one) => (row.tie || one[MARGIN] === 0 ? "tie" : one[MARGIN] > 0 ? "right" : "wrong");

    function snippet(text, className) {
      const made = element("div", className, text.trimStart().slice(0, 160).replace(/\s+/g, " "));
      made.dir = "auto";
      return made;
    }

    function item(place) {
      const row = rows[state.found[place]];
      const made = element("div", "item");
      made.id = `item-${place}`;
      made.setAttribute("role", "option");
      made.setAttribute("aria-selected", String(place === state.at));
      made.setAttribute("aria-posinset", String(place + 1));
      made.setAttribute("aria-setsize", String(state.found.length));
      made.style.setProperty("top", `${place * ITEM}px`);
      const top = element("div", "top");
      top.append(element("bdi", "", row.id), element("span", `state ${class_for(row, scores(row))}`, `${word_for(row, scores(row))} ${signed(scores(row)[MARGIN])}`));
      made.append(top, snippet(promptText(row), "snippet"));
      if (row.c !== undefined) made.append(snippet(texts[row.c], "snippet quiet"));
      made.addEventListener("click", () => {
        show(place, { link: true });
        // On a phone the pair stands below the list.
        if (window.matchMedia("(max-width: 52rem)").matches) pane.scrollIntoView({ block: "start" });
      });
      return made;
    }

    function draw() {
      const first = Math.max(0, Math.floor(list.scrollTop / ITEM) - OVERSCAN);
      const last = Math.min(state.found.length, Math.ceil((list.scrollTop + list.clientHeight) / ITEM) + OVERSCAN);
      const items = [];
      for (let place = first; place < last; place++) items.push(item(place));
      spacer.replaceChildren(...items);
      if (state.at >= first && state.at < last) list.setAttribute("aria-activedescendant", `item-${state.at}`);
      else list.removeAttribute("aria-activedescendant");
    }

    function show(place, { reveal = false, link = false } = {}) {
      state.at = place;
      if (place >= 0) {
        const top = place * ITEM;
        if (top < list.scrollTop) list.scrollTop = top;
        else if (top + ITEM > list.scrollTop + list.clientHeight) list.scrollTop = reveal ? Math.max(0, top - ITEM) : top + ITEM - list.clientHeight;
      } else list.scrollTop = 0;
      draw();
      detail();
      if (link && place >= 0) history.replaceState(null, "", `#pair=${encodeURIComponent(rows[state.found[place]].id)}`);
    }

    function step(by) {
      if (!state.found.length) return;
      show(Math.min(state.found.length - 1, Math.max(0, state.at + by)), { link: true });
    }

    // A text with the words that were searched for marked; matched on the text as it stands, so the odd compatibility form is found and not marked.
    function textual(text, tag = "div", className = "text") {
      const made = element(tag, className);
      made.dir = "auto";
      if (!text) {
        made.classList.add("empty");
        made.textContent = "(empty)";
        return made;
      }
      const wanted = terms();
      const lower = text.toLowerCase();
      if (!wanted.length || lower.length !== text.length) {
        made.textContent = text;
        return made;
      }
      const hits = [];
      for (const word of wanted) {
        for (let at = lower.indexOf(word); at >= 0 && hits.length < 2000; at = lower.indexOf(word, at + word.length)) hits.push([at, at + word.length]);
      }
      hits.sort((a, b) => a[0] - b[0]);
      let end = 0;
      for (const [from, to] of hits) {
        if (from < end) continue;
        made.append(text.slice(end, from), element("mark", "", text.slice(from, to)));
        end = to;
      }
      made.append(text.slice(end));
      return made;
    }

    function shaded(one) {
      const made = element("div", "text");
      made.dir = "auto";
      for (const [text, value, shade] of one.tokens) {
        const word = element("span", shade ? `word ${shade > 0 ? "u" : "d"}${Math.abs(shade)}` : "word", text);
        word.title = value === null ? "not read" : signed(value);
        made.append(word);
      }
      return made;
    }

    function side(row, name, words) {
      const one = scores(row);
      const isChosen = name === "chosen";
      const part = element("section", `side ${name}`);
      const head = element("header");
      const prefers = isChosen ? one[MARGIN] > 0 : one[MARGIN] < 0;
      head.append(element("h4", "", isChosen ? "Chosen" : "Rejected"), element("span", "score", one[isChosen ? CHOSEN : REJECTED].toFixed(3)));
      const line = element("p", "facts-line");
      if (prefers) line.append(element("span", "prefers", "the model's choice "));
      const tokens = one[isChosen ? TOKENS_CHOSEN : TOKENS_REJECTED], cut = one[isChosen ? CUT_CHOSEN : CUT_REJECTED];
      if (tokens !== null) line.append(`${count(tokens)} tokens read `);
      if (cut) line.append(element("span", "cut", "cut: the model did not read all of it"));
      part.append(head, line);
      const place = isChosen ? row.c : row.r;
      if (words) {
        part.append(shaded(words));
        const said = [`method: ${words.method}`];
        for (const key of ["baseline", "sum", "gap"]) if (typeof words[key] === "number") said.push(`${key} ${signed(words[key])}`);
        part.append(element("p", "facts-line", said.join(", ")));
      } else if (place !== undefined) part.append(textual(texts[place]));
      else part.append(element("p", "facts-line", "The text was not stored."));
      return part;
    }

    function detail() {
      pane.replaceChildren();
      if (state.at < 0) {
        pane.append(element("p", "quiet", "No pair is left. Take a filter away, or search for something else."));
        return;
      }
      const row = rows[state.found[state.at]], one = scores(row);
      const head = element("header");
      const title = element("h3"), link = element("a");
      link.href = `#pair=${encodeURIComponent(row.id)}`;
      link.append(element("bdi", "", row.id));
      title.append(link);
      const steps = element("div", "steps");
      const previous = element("button", "", "Previous"), next = element("button", "", "Next");
      previous.type = next.type = "button";
      previous.disabled = state.at === 0;
      next.disabled = state.at === state.found.length - 1;
      // The pane is made anew by a step: the focus goes to the button that was pressed, or to its twin at the end.
      const press = (by, name) => {
        step(by);
        const twins = [...pane.querySelectorAll(".steps button")];
        (twins.find((twin) => twin.textContent === name && !twin.disabled) || twins.find((twin) => !twin.disabled) || pane).focus({ preventScroll: true });
      };
      previous.addEventListener("click", () => press(-1, "Previous"));
      next.addEventListener("click", () => press(1, "Next"));
      steps.append(previous, element("span", "", `${count(state.at + 1)} of ${count(state.found.length)}`), next);
      head.append(title, steps);
      const temperature = temperatures[state.model];
      const reading = element("p", "reading");
      const at = temperature === null ? "no temperature fitted" : `at temperature ${temperature.toFixed(2)}`;
      reading.append(
        element("span", `state ${class_for(row, one)}`, word_for(row, one)),
        `: margin ${signed(one[MARGIN])}; it gives the chosen answer ${(100 * one[PROBABILITY]).toFixed(1)} % (${at}).`,
      );
      pane.append(head, reading);
      if (several) pane.append(models_table(row));
      const tags = Object.entries(row.m || {});
      if (tags.length) {
        const names = element("dl", "tags");
        for (const [key, value] of tags) {
          const group = element("div"), term = element("dt"), said = element("dd");
          term.append(element("bdi", "", key));
          said.append(element("bdi", "", value));
          group.append(term, said);
          names.append(group);
        }
        pane.append(names);
      }
      for (const [turns, title] of [[turnsOf(row.p, "Prompt"), ""], [turnsOf(row.q, "Prompt"), "The rejected answer came with another prompt:"]]) {
        if (!turns.length) continue;
        const prompt = element("div", "prompt");
        if (title) prompt.append(element("p", "quiet", title));
        for (const [role, place] of turns) {
          const turn = element("div", "turn");
          turn.append(element("h4", "", role), textual(texts[place]));
          prompt.append(turn);
        }
        pane.append(prompt);
      }
      const words = (row.a && row.a[state.model]) || null;
      if (words) {
        const line = element("div", "switch"), button = element("button", "", state.words ? "Show plain texts" : "Show which words moved the score");
        button.type = "button";
        button.setAttribute("aria-pressed", String(state.words));
        button.addEventListener("click", () => {
          state.words = !state.words;
          detail();
          pane.querySelector(".switch button").focus({ preventScroll: true });
        });
        line.append(button);
        if (state.words) {
          for (const [name, text] of [["u3", "raised the score"], ["d3", "lowered it"]]) line.append(element("span", `word ${name}`, text));
        }
        pane.append(line);
      }
      const answers = element("div", "answers");
      for (const name of ["chosen", "rejected"]) answers.append(side(row, name, state.words && words ? words[name] : null));
      pane.append(answers);
    }

    // Roles are said out loud: on a phone the rows are laid out as grids, which would take their meaning away.
    function cell(tag, role, className, text) {
      const made = element(tag, className, text);
      made.setAttribute("role", role);
      if (tag === "th") made.scope = role === "rowheader" ? "row" : "col";
      return made;
    }

    function models_table(row) {
      const table = cell("table", "table", "by-model"), top = cell("thead", "rowgroup"), body = cell("tbody", "rowgroup");
      const caption = element("caption", "unseen", "Scores of every model");
      const names = cell("tr", "row");
      ["model", "chosen", "rejected", "margin", "probability", "outcome"].forEach((name, i) => names.append(cell("th", "columnheader", i > 0 && i < 5 ? "number" : "", name)));
      top.append(names);
      models.forEach((name, i) => {
        const line = cell("tr", "row"), first = cell("th", "rowheader"), one = row.s[i];
        first.append(element("bdi", "", name));
        line.append(first);
        if (one) {
          for (const text of [one[CHOSEN].toFixed(3), one[REJECTED].toFixed(3), signed(one[MARGIN]), `${(100 * one[PROBABILITY]).toFixed(1)} %`]) line.append(cell("td", "cell", "number", text));
          line.append(cell("td", "cell", `state ${class_for(row, one)}`, word_for(row, one)));
        } else {
          const none = cell("td", "cell", "quiet", "not scored");
          none.colSpan = 5;
          line.append(none);
        }
        body.append(line);
      });
      table.append(caption, top, body);
      return table;
    }

    // A link to a pair: filters that hide it are taken away.
    function follow() {
      const match = /^#pair=(.*)$/.exec(location.hash);
      if (!match) return false;
      let id;
      try {
        id = decodeURIComponent(match[1]);
      } catch {
        return false;
      }
      const place = rows.findIndex((row) => row.id === id);
      if (place < 0) return false;
      if (!scores(rows[place])) {
        state.model = rows[place].s.findIndex(Boolean);
        select.model.value = String(state.model);
        recount();
      }
      if (!state.found.includes(place)) {
        Object.assign(state, { preset: "all", query: "", column: "", value: "" });
        query.value = select.column.value = "";
        offer_values();
      }
      refresh(place);
      byId("examples").scrollIntoView({ block: "start", behavior: "instant" });
      return true;
    }

    function offer_values() {
      byId("value-field").hidden = !state.column;
      fill(select.value, state.column ? [["", "any"], ...filters[state.column].map((value) => [value, value])] : []);
    }

    for (const [name, title, , order] of presets) {
      const button = element("button", "", `${title} `);
      button.type = "button";
      button.dataset.preset = name;
      button.append(element("small"));
      button.addEventListener("click", () => {
        state.preset = name;
        state.order = order || "data";
        select.order.value = state.order;
        state.found = [];
        refresh();
      });
      chips.set(name, button);
      document.querySelector(".chips").append(button);
    }
    fill(select.model, models.map((name, i) => [String(i), name]));
    fill(select.order, orders.map(([name, title]) => [name, title]));
    fill(select.column, [["", "any"], ...Object.keys(filters).map((name) => [name, name])]);
    byId("model-field").hidden = !several;
    byId("column-field").hidden = !Object.keys(filters).length;
    select.model.addEventListener("change", () => {
      state.model = Number(select.model.value);
      recount();
      refresh();
    });
    select.column.addEventListener("change", () => {
      Object.assign(state, { column: select.column.value, value: "" });
      offer_values();
      refresh();
    });
    select.value.addEventListener("change", () => {
      state.value = select.value.value;
      refresh();
    });
    select.order.addEventListener("change", () => {
      state.order = select.order.value;
      state.found = [];
      refresh();
    });
    let waiting = 0;
    query.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        state.query = query.value;
        refresh();
      }, 120);
    });
    list.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    window.addEventListener("resize", draw);
    window.addEventListener("hashchange", follow);
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const target = event.target;
      if (target instanceof HTMLElement && target.matches("input, select, textarea")) {
        if (event.key === "Escape" && target === query) list.focus();
        return;
      }
      const near = byId("examples").contains(target) || target === document.body;
      if (event.key === "/" && near) {
        event.preventDefault();
        query.focus();
      } else if ((event.key === "j" || event.key === "k") && near) step(event.key === "j" ? 1 : -1);
      else if (target === list) {
        const page = Math.max(1, Math.floor(list.clientHeight / ITEM) - 1);
        const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length }[event.key];
        if (by) {
          event.preventDefault();
          step(by);
        }
      }
    });
    byId("browser").hidden = false;
    recount();
    refresh();
    follow();
    document.documentElement.dataset.ready = "examples";
  }
})();
