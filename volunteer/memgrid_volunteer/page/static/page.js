// Puts what the volunteer says in its places, once a second while somebody looks; words come ready made.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const csrf = document.querySelector("meta[name=csrf]").content;
  const SVG = "http://www.w3.org/2000/svg";

  const make = (name, options = {}, ...children) => {
    const { svg, data, ...attributes } = options;
    const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
    Object.assign(element.dataset, data);
    element.append(...children);
    return element;
  };
  const text = (element, value) => { if (element.textContent !== value) element.textContent = value; };
  const show = (element, shown) => { if (element.hidden === shown) element.hidden = !shown; };

  // What the server says, or why it says nothing.
  const call = async (path, body) => {
    const post = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", "X-Memgrid-Csrf": csrf } };
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000), ...post });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw Object.assign(new Error(said.error || `it answers ${answer.status}`), { status: answer.status, errors: said.errors });
    return said;
  };

  const shown = new Map();
  const isNews = (name, value) => {
    const now = JSON.stringify(value);
    if (shown.get(name) === now) return false;
    shown.set(name, now);
    return true;
  };

  // Now.
  const drawStatus = (facts) => {
    show(find("gone"), false);
    const { view } = facts;
    document.title = `${view.state} · ${facts.label}`;
    const { grids } = facts;
    if (isNews("label", [facts.label, grids.map((grid) => [grid.name, grid.url])])) {
      find("label").replaceChildren(`${facts.label} on `, ...grids.flatMap((grid, index) => [index ? ", " : "", gridLink(grid)]));
      shown.delete("units");
    }
    drawGrids(grids);
    find("hero").dataset.tone = view.tone;
    text(find("state"), view.state);
    text(find("why"), view.why);
    const alone = view.is_paused && view.pauses.length === 1 ? [] : view.pauses;
    if (isNews("pauses", alone)) find("pauses").replaceChildren(...alone.map((words) => make("li", {}, words)));
    show(find("pauses"), alone.length > 0);
    show(find("actions"), true);
    show(document.querySelector("#actions [data-resume]"), view.is_paused);
    if (isNews("problems", facts.problems)) find("problems").replaceChildren(...facts.problems.map((words) => make("li", {}, words)));
    show(find("problems"), facts.problems.length > 0);
    if (isNews("tiles", facts.tiles)) find("tiles").replaceChildren(...facts.tiles.map((tile) => make("div", { class: "stat" }, make("dt", {}, tile.name), make("dd", {}, make("b", {}, tile.value), make("small", {}, tile.note)))));
    drawDevices(view.devices);
    text(find("who"), grids.length > 1 ? "" : `${grids[0].public_name} on the grid's pages; `);
    text(find("isolation"), `workers are kept apart by ${facts.isolation || "nothing yet"}.`);
    if (isNews("unseen", view.unseen)) find("unseen").replaceChildren(...view.unseen.map(([name, why]) => make("li", {}, `Can't be seen: ${name}, ${why}`)));
    show(find("unseen"), view.unseen.length > 0);
    if (isNews("left-out", view.left_out)) find("left-out").replaceChildren(...view.left_out.map(([name, why]) => make("li", {}, `${name} is left out: ${why}`)));
    show(find("left-out"), view.left_out.length > 0);
    if (isNews("version", facts.version)) { loadHistory(); loadCredit(); }
    if (isNews("preset", [facts.preset, view.devices.map((device) => device.device_id)])) loadForm();
  };

  const gridLink = (grid) => make("a", { href: grid.url, rel: "noreferrer" }, grid.name);
  const gridNames = new Map();
  const drawGrids = (grids) => {
    gridNames.clear();
    if (grids.length > 1) for (const grid of grids) gridNames.set(grid.url, grid.name);
    show(find("grid-section"), grids.length > 1);
    show(find("to-grids"), grids.length > 1);
    if (grids.length > 1 && isNews("grids", grids)) find("grid-rows").replaceChildren(...grids.map((grid) => make("tr", { data: { tone: grid.tone } },
      make("th", { scope: "row" }, gridLink(grid), make("small", {}, `as ${grid.public_name}`)),
      make("td", {}, make("span", { class: "state" }, grid.state), ...(grid.why ? [make("small", {}, grid.why)] : [])),
      make("td", { class: "number" }, grid.part, make("small", {}, String(grid.share))),
      make("td", { class: "number" }, grid.lately),
      make("td", { class: "number" }, grid.units),
      make("td", { class: "number" }, grid.credit))));
  };

  const drawDevices = (devices) => {
    const list = find("device-list");
    const wanted = devices.map((device) => device.device_id);
    for (const card of [...list.children]) if (!wanted.includes(card.dataset.device)) card.remove();
    for (const device of devices) {
      let card = [...list.children].find((each) => each.dataset.device === device.device_id);
      if (!card) {
        card = find("device").content.firstElementChild.cloneNode(true);
        card.dataset.device = device.device_id;
        card.querySelector("h3").id = `device-${list.children.length}`;
        card.setAttribute("aria-labelledby", card.querySelector("h3").id);
        card.querySelector(".menu summary").setAttribute("aria-label", `Pause ${device.device_id}`);
        card.querySelector("[data-resume]").setAttribute("aria-label", `Resume ${device.device_id}`);
        list.append(card);
      }
      drawDevice(card, device);
    }
  };

  const drawDevice = (card, device) => {
    const at = (selector) => card.querySelector(selector);
    card.dataset.tone = device.tone;
    text(at("h3"), device.name || device.device_id);
    text(at(".what"), device.name ? device.device_id : "");
    text(at(".state"), device.state);
    if (isNews(`why ${device.device_id}`, [device.why, device.decided_by])) at(".why").replaceChildren(`${device.why} `, ...(device.decided_by ? [make("span", { class: "key" }, device.decided_by)] : []));
    show(at(".why"), device.why !== "");
    show(at(".job"), device.unit !== "");
    text(at(".work"), device.work);
    const share = device.share ?? 0;
    at(".meter rect:last-child").setAttribute("width", (1000 * share).toFixed(1));
    at(".meter").setAttribute("aria-label", `${Math.floor(100 * share)}% of ${device.work || "no unit"} done`);
    text(at(".share"), device.share === null ? "" : `${Math.floor(100 * share)}%`);
    text(at(".progress"), device.progress);
    text(at(".left"), device.left);
    if (isNews(`facts ${device.device_id}`, device.facts)) at(".facts").replaceChildren(...device.facts.map(([name, value]) => make("div", { class: value.length > 18 ? "long" : "short" }, make("dt", {}, name), make("dd", {}, value))));
    show(at("[data-resume]"), device.is_paused_alone);
  };

  // Pause and resume: of everything, or of the device whose card it is.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-pause], [data-resume]");
    if (!button) return;
    const device_id = button.closest("[data-device]")?.dataset.device ?? null;
    const how = button.dataset.pause;
    const end = how === "restart" ? { until_restart: true } : how ? { for_s: Number(how) } : {};
    const menu = button.closest(".menu");
    button.disabled = true;
    try {
      drawStatus(how === undefined ? await call("/v1/resume", { device_id }) : await call("/v1/pause", { device_id, ...end }));
      if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
      else if (button.hidden) document.querySelector(device_id === null ? "#actions [data-pause]" : `[data-device="${CSS.escape(device_id)}"] summary`).focus();
    } catch (error) { say(error); } finally { button.disabled = false; }
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest(".menu[open]");
    if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
  });

  // Credit.
  let span = "month";
  const loadCredit = async () => {
    try { drawCredit(await call(`/v1/credit?span=${span}`)); } catch (error) { say(error); }
  };
  const drawCredit = (chart) => {
    if (!isNews("credit", chart)) return;
    const wasOpen = document.querySelector("#plot details")?.open ?? false;
    const marks = chart.marks.map((mark) => make("g", { svg: true, class: "mark" },
      make("title", { svg: true }, `${mark.label}: ${mark.value}`),
      make("rect", { svg: true, class: "hit", x: 1000 * mark.x, width: 1000 * chart.width, height: 1000 }),
      make("rect", { svg: true, class: "column", x: 1000 * (mark.x + 0.12 * chart.width), y: 1000 * (1 - mark.share), width: 760 * chart.width, height: 1000 * mark.share })));
    const rows = chart.marks.map((mark) => make("tr", {}, make("td", {}, mark.label), make("td", { class: "number" }, mark.value)));
    const head = make("tr", {}, make("th", { scope: "col" }, "time"), make("th", { scope: "col", class: "number" }, "credit"));
    find("plot").replaceChildren(
      make("figcaption", { id: "plot-title" }, chart.title),
      make("div", { class: "frame" },
        make("div", { class: "ticks", "aria-hidden": "true" }, ...chart.ticks.map((tick) => make("span", {}, tick))),
        make("svg", { svg: true, viewBox: "0 0 1000 1000", preserveAspectRatio: "none", role: "img", "aria-label": `${chart.title}: ${chart.summary}` },
          make("path", { svg: true, class: "lines", d: "M0 0H1000M0 500H1000M0 1000H1000" }), ...marks),
        make("div", { class: "along", "aria-hidden": "true" }, make("span", {}, chart.first), make("span", {}, chart.last))),
      make("details", { class: "numbers", open: wasOpen }, make("summary", {}, "Numbers"),
        make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${chart.title} as a table` },
          make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)))));
  };
  document.querySelector(".choose").addEventListener("click", (event) => {
    const button = event.target.closest("[data-span]");
    if (!button) return;
    span = button.dataset.span;
    for (const each of document.querySelectorAll("[data-span]")) each.setAttribute("aria-pressed", each === button);
    loadCredit();
  });

  // History: the first page follows what happens until older ones are asked for.
  let oldest = null, isFirstPage = true;
  const loadHistory = async () => {
    if (!isFirstPage) return;
    try { drawUnits(await call("/v1/history"), true); } catch (error) { say(error); }
  };
  const drawUnits = (page, isFirst) => {
    oldest = page.more;
    show(find("older-row"), oldest !== null);
    if (isFirst && !isNews("units", page.units)) return;
    const rows = page.units.map(unitRow);
    if (isFirst) find("units").replaceChildren(...rows); else find("units").append(...rows);
    show(find("no-units"), find("units").children.length === 0);
  };
  const unitRow = (unit) => make("tr", { data: { tone: unit.tone } },
    make("td", { class: "when" }, make("time", { datetime: unit.moment }, unit.at)),
    make("th", { scope: "row" }, unit.work, make("small", {}, `${unit.kind} ${unit.device} ${gridNames.has(unit.grid) ? `for ${gridNames.get(unit.grid)} ` : ""}`,
      make("button", { type: "button", class: "link", data: { explain: unit.key }, "aria-label": `Copy the command that explains unit ${unit.key.slice(0, 12)}` }, unit.key.slice(0, 12)))),
    make("td", { class: "verdict" }, make("span", { class: "state" }, unit.outcome), ...(unit.reason ? [make("small", {}, unit.reason)] : [])),
    make("td", { class: "became" }, ...unit.became.map((one) => make("a", { href: one.href, rel: "noreferrer" }, one.text))),
    make("td", { class: "number took" }, unit.took, ...(unit.speed ? [make("small", {}, unit.speed)] : [])),
    make("td", { class: "number" }, unit.credit));
  find("older").addEventListener("click", async () => {
    try { isFirstPage = false; drawUnits(await call(`/v1/history?before=${oldest}`), false); } catch (error) { say(error); }
  });
  find("units").addEventListener("click", async (event) => {
    const button = event.target.closest("[data-explain]");
    if (!button) return;
    const command = `memgrid explain ${button.dataset.explain}`;
    try { await navigator.clipboard.writeText(command); button.textContent = "command copied"; }
    catch { button.textContent = command; }
    setTimeout(() => { button.textContent = button.dataset.explain.slice(0, 12); }, 2500);
  });

  // Preferences: each change applies at once; what is wrong stands where it was written.
  const loadForm = async () => {
    if (find("form").contains(document.activeElement) && document.activeElement.matches("input:not([type]), input[type=text]")) return;
    try { drawForm(await call("/v1/preferences")); } catch (error) { say(error); }
  };
  const drawForm = (facts) => {
    text(find("path"), facts.path);
    const area = find("text");
    if (document.activeElement !== area && area.value !== facts.text) { area.value = facts.text; drawFileProblems(facts.problems); }
    if (!isNews("form", [facts.presets, facts.preset, facts.groups])) return;
    const focused = document.activeElement?.id;
    find("presets").replaceChildren(make("legend", { class: "hush" }, "Preset"), ...facts.presets.map(([value, name, words]) =>
      make("label", {}, make("input", { type: "radio", name: "preset", value, id: `preset-${value}`, checked: value === facts.preset }), make("b", {}, name), make("small", {}, words))));
    find("groups").replaceChildren(...facts.groups.map((group, index) => make("fieldset", { class: "card" }, make("legend", {}, group.title), ...group.fields.map((field, place) => drawField(field, `field-${index}-${place}`)))));
    if (focused) document.getElementById(focused)?.focus();
  };
  const drawField = (field, id) => {
    const shared = { id, "aria-describedby": `${id}-error`, data: { key: field.key, kind: field.kind } };
    const value = field.value === null ? "" : Array.isArray(field.value) ? field.value.join(", ") : String(field.value);
    const input = field.kind === "flag" ? make("input", { ...shared, type: "checkbox", checked: field.value === true })
      : field.kind === "choice" ? make("select", shared, ...field.choices.map(([name, words]) => make("option", { value: name, selected: name === field.value }, words)))
        : make("input", { ...shared, type: "text", value, placeholder: field.empty, inputmode: field.kind === "number" ? "decimal" : "text" });
    return make("div", { class: "field" }, make("label", { for: id }, field.label, ...(field.hint ? [make("small", {}, field.hint)] : [])), input, make("p", { class: "error", id: `${id}-error`, hidden: true }));
  };
  const valueOf = (input) => {
    if (input.type === "checkbox") return input.checked;
    const said = input.value.trim();
    if (input.dataset.kind === "list") return said ? said.split(",").map((part) => part.trim()).filter(Boolean) : null;
    if (input.dataset.kind === "number") return said === "" ? null : Number.isFinite(Number(said)) ? Number(said) : said;
    return said;
  };
  find("form").addEventListener("submit", (event) => event.preventDefault());
  find("form").addEventListener("change", async (event) => {
    const input = event.target;
    const wish = input.name === "preset" ? { preset: input.value } : { key: input.dataset.key, value: valueOf(input) };
    const error = find(`${input.id}-error`);
    try {
      const facts = await call("/v1/preferences", wish);
      input.removeAttribute("aria-invalid");
      if (error) show(error, false);
      drawForm(facts);
      tellSaved("Saved; it holds from now on.");
    } catch (problem) {
      if (!error || !problem.errors) { say(problem); return; }
      input.setAttribute("aria-invalid", "true");
      text(error, problem.errors.map((line) => line.replace(/^volunteer\.toml: (line \d+: )?/, "")).join("; "));
      show(error, true);
      tellSaved("Not saved.");
    }
  });
  find("save").addEventListener("click", async () => {
    try {
      const facts = await call("/v1/preferences", { text: find("text").value });
      drawFileProblems([]);
      drawForm(facts);
      tellSaved("Saved; it holds from now on.");
    } catch (problem) {
      if (problem.errors) { drawFileProblems(problem.errors); tellSaved("Not saved."); } else say(problem);
    }
  });
  const drawFileProblems = (lines) => {
    find("text").toggleAttribute("aria-invalid", lines.length > 0);
    find("file-problems").replaceChildren(...lines.map((line) => make("li", {}, make("button", { type: "button", data: { line: /line (\d+)/.exec(line)?.[1] ?? "1" } }, line))));
  };
  find("file-problems").addEventListener("click", (event) => {
    const button = event.target.closest("[data-line]");
    if (!button) return;
    const area = find("text"), before = area.value.split("\n").slice(0, Number(button.dataset.line) - 1).join("\n").length;
    const start = before + (Number(button.dataset.line) > 1 ? 1 : 0), end = area.value.indexOf("\n", start);
    area.focus();
    area.setSelectionRange(start, end < 0 ? area.value.length : end);
  });
  let savedTimer;
  const tellSaved = (words) => { text(find("saved"), words); clearTimeout(savedTimer); savedTimer = setTimeout(() => text(find("saved"), ""), 5000); };

  // Once a second while somebody looks; slower while nobody answers.
  const say = (error) => {
    const words = error.status === 401 ? "This page is not open any more. Open it again with: memgrid volunteer page"
      : error.status ? `That did not work: ${error.message}` : "The volunteer does not answer. It may have been stopped; memgrid volunteer run starts it.";
    text(find("gone"), words);
    show(find("gone"), true);
  };
  let rounds = 0;
  const round = async () => {
    let wait = 1000;
    if (!document.hidden) {
      try {
        drawStatus(await call("/v1/status"));
        // What a unit became is asked of the grid, and known a little later.
        if (++rounds % 30 === 3) loadHistory();
      } catch (error) { say(error); find("hero").dataset.tone = "quiet"; wait = 3000; }
    }
    timer = setTimeout(round, wait);
  };
  let timer = setTimeout(round, 0);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { clearTimeout(timer); round(); } });
})();
