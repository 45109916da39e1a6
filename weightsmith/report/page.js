"use strict";
// What a page can do beyond being read: tabs, tooltips for pointer and keyboard, arrow keys in maps and plots.
// Everything that it says stands in the page already, and goes in as text, never as markup.
(() => {
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("scripted");

  // Tabs: buttons from the headings of the panels.
  for (const tabs of every(".tabs")) {
    const panels = every(":scope > .panel", tabs);
    if (panels.length < 2) continue;
    const list = document.createElement("div");
    list.className = "tablist";
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", tabs.dataset.label);
    const buttons = panels.map((panel) => {
      const button = document.createElement("button");
      button.type = "button";
      button.id = `${panel.id}-tab`;
      button.textContent = panel.querySelector(":scope > .panel-title").textContent;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", button.id);
      list.append(button);
      return button;
    });
    const choose = (chosen) => {
      panels.forEach((panel, place) => {
        panel.hidden = place !== chosen;
        buttons[place].setAttribute("aria-selected", String(place === chosen));
        buttons[place].tabIndex = place === chosen ? 0 : -1;
      });
    };
    buttons.forEach((button, place) => button.addEventListener("click", () => choose(place)));
    list.addEventListener("keydown", (event) => {
      const now = buttons.indexOf(document.activeElement), last = buttons.length - 1;
      const next = { ArrowRight: now === last ? 0 : now + 1, ArrowLeft: now === 0 ? last : now - 1, Home: 0, End: last }[event.key];
      if (now < 0 || next === undefined) return;
      event.preventDefault();
      choose(next);
      buttons[next].focus();
    });
    tabs.classList.add("ready");
    tabs.prepend(list);
    choose(0);
  }

  // What a cell, patch or point says. Its title is taken over, so that the browser's own tooltip does not come as well.
  const spots = ".cells td, .patches rect, .chart .spot";
  const told = (spot) => {
    if (spot.dataset.told !== undefined) return spot.dataset.told;
    const inside = spot.querySelector(":scope > title");
    const own = inside ? inside.textContent : spot.getAttribute("title");
    let text = own || "";
    if (spot.matches("td")) {
      const table = spot.closest("table");
      const row = spot.parentElement.cells[0].textContent, column = table.tHead.rows[0].cells[spot.cellIndex].textContent;
      text = `${table.dataset.down} ${row}, ${table.dataset.across} ${column}: ${own || table.dataset.empty}`;
    } else if (spot.matches("rect")) {
      text = `patch in row ${spot.getAttribute("y")}, column ${spot.getAttribute("x")}: ${own}`;
    }
    if (inside) inside.remove(); else spot.removeAttribute("title");
    spot.dataset.told = text;
    return text;
  };
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const show = (spot) => {
    tip.textContent = told(spot);
    tip.hidden = false;
    const box = spot.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const left = Math.min(Math.max(box.left + box.width / 2 - size.width / 2, 6), innerWidth - size.width - 6);
    const above = box.top - size.height - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 6 ? above : box.bottom + 8}px`;
  };
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointerover", (event) => {
    const spot = event.target.closest(spots);
    if (spot) show(spot); else hide();
  });
  document.addEventListener("focusin", (event) => {
    const spot = event.target.closest(spots);
    if (!spot) return hide();
    spot.setAttribute("aria-label", told(spot));
    show(spot);
  });
  document.addEventListener("scroll", hide, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // One tab stop for a whole map or plot; arrow keys go on from there.
  const lines = (field) => {
    if (field.matches("table")) return every("tbody tr", field).map((row) => every("td", row));
    if (field.matches(".chart")) return every(".line", field).map((line) => every(".spot", line)).filter((line) => line.length);
    const rects = every("rect", field), across = Number(field.dataset.columns);
    return Array.from({ length: rects.length / across }, (_, row) => rects.slice(row * across, (row + 1) * across));
  };
  for (const field of every("table.cells, svg.chart, svg.patches[data-columns]")) {
    const first = field.querySelector(spots);
    if (!first) continue;
    if (field.matches("table")) field.setAttribute("role", "grid");
    else every(spots, field).forEach((spot) => spot.setAttribute("role", "img"));
    first.setAttribute("tabindex", "0");
    field.addEventListener("keydown", (event) => {
      const spot = event.target.closest(spots), rows = lines(field);
      if (!spot) return;
      const row = rows.findIndex((line) => line.includes(spot)), column = rows[row].indexOf(spot);
      const aim = {
        ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column], ArrowUp: [row - 1, column],
        Home: [row, 0], End: [row, rows[row].length - 1],
      }[event.key];
      if (!aim) return;
      event.preventDefault();
      const line = rows[Math.min(Math.max(aim[0], 0), rows.length - 1)];
      const next = line[Math.min(Math.max(aim[1], 0), line.length - 1)];
      spot.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest", inline: "nearest" });
      show(next);
    });
  }

  // Paper has no buttons: what is folded away is opened for it, and closed again.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = every("details:not([open])");
    folded.forEach((part) => { part.open = true; });
    hide();
  });
  addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
})();
