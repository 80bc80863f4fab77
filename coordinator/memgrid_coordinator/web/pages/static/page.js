// Makes the pages nicer to use; each works without it.
"use strict";
(() => {
  const quiet = () => document.hidden;

  const localTimes = (root) => {
    for (const element of root.querySelectorAll("time[datetime]")) {
      const at = new Date(element.dateTime);
      const text = at.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
      element.title = text;
      if (!("ago" in element.dataset)) element.textContent = text;
    }
  };

  const copying = (root) => {
    for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = !navigator.clipboard;
  };

  const enhance = (root) => { localTimes(root); copying(root); };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  const load = async (address, signal) => {
    const answer = await fetch(address, { headers: { Accept: "text/html" }, signal });
    if (!answer.ok) return null;
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  };

  // Part by part, and only what has changed: whoever reads, selects or has opened something is left in peace.
  const shown = new Map();
  const remember = (root) => { for (const part of root.querySelectorAll("[data-part]")) shown.set(part.id, part.innerHTML); };
  const busyIn = (part) => part.contains(document.activeElement) || part.matches(":hover .mark:hover") ||
    (!getSelection().isCollapsed && part.contains(getSelection().anchorNode)) || part.querySelector("details[open]");
  const renew = (fresh) => {
    for (const part of document.querySelectorAll("[data-part]")) {
      const newer = fresh.getElementById(part.id);
      if (!newer || shown.get(part.id) === newer.innerHTML || busyIn(part)) continue;
      shown.set(part.id, newer.innerHTML);
      part.replaceChildren(...newer.childNodes);
      enhance(part);
    }
  };
  const live = document.querySelector("main[data-live]");
  if (live) {
    const every = 1000 * Number(live.dataset.live);
    let waited = every;
    const round = async () => {
      if (!quiet()) {
        try {
          const fresh = await load(location.href);
          waited = fresh ? every : Math.min(2 * waited, 120000);
          if (fresh) renew(fresh);
        } catch {
          waited = Math.min(2 * waited, 120000);
        }
      }
      setTimeout(round, waited);
    };
    setTimeout(round, every);
  }

  // A search answers while one types.
  const form = document.querySelector("form[data-search]");
  if (form) {
    let pending, timer;
    const search = async () => {
      const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      const address = query.size ? `${form.action}?${query}` : form.action;
      pending?.abort();
      pending = new AbortController();
      try {
        const fresh = await load(address, pending.signal);
        const newer = fresh?.getElementById(form.dataset.search);
        if (!newer) return;
        document.getElementById(form.dataset.search).replaceChildren(...newer.childNodes);
        enhance(document.getElementById(form.dataset.search));
        history.replaceState(null, "", address);
      } catch (error) {
        if (error.name !== "AbortError") form.submit();
      }
    };
    form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 200); });
    form.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); search(); });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) return;
    const field = document.querySelector("[data-slash]");
    if (field) { event.preventDefault(); field.focus(); field.select(); }
  });

  remember(document);
  enhance(document);
})();
