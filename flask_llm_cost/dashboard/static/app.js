/* Niceties. Every page works without them. */
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("scripted");

  // A choice in the sentence takes effect at once; one's own dates wait for the button.
  document.addEventListener("change", (event) => {
    const select = event.target;
    if (!select.matches(".auto select") || !select.form) return;
    const own = select.form.querySelector("option[value=custom]:checked");
    if (!(own && select.name === "range")) select.form.requestSubmit();
  });

  // Empty fields stay out of the address.
  document.addEventListener("submit", (event) => {
    const named = event.target.querySelector("[name=range]");
    for (const field of event.target.querySelectorAll("[name]")) {
      const dates = (field.name === "from" || field.name === "to") && named && named.value !== "custom";
      if (!field.value || dates || (field.name === "range" && field.value === "this_month")) field.disabled = true;
    }
  });
  addEventListener("pageshow", () => {
    for (const field of document.querySelectorAll("form [name]:disabled")) field.disabled = false;
  });

  // What a bar says, beside the pointer or at the focused bar, instead of the browser's own late title.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("aria-hidden", "true");
  tip.hidden = true;
  document.body.append(tip);
  const told = new WeakMap();
  const slotOf = (target) => (target.closest ? target.closest(".slot") : null);
  const say = (slot) => {
    if (!told.has(slot)) {
      const title = slot.querySelector("title");
      told.set(slot, title ? title.textContent : "");
      if (title) {
        slot.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
        title.remove();
      }
    }
    tip.replaceChildren();
    told.get(slot).split("\n").forEach((line, index) => {
      const row = document.createElement(index ? "span" : "b");
      const cut = index ? line.lastIndexOf(" ") : -1;
      if (cut > 0 && /\d/.test(line.slice(cut))) {
        const amount = document.createElement("i");
        amount.textContent = line.slice(cut + 1);
        row.append(line.slice(0, cut), amount);
      } else {
        row.textContent = line;
      }
      tip.append(row);
    });
    tip.hidden = false;
  };
  const place = (x, y) => {
    const width = tip.offsetWidth, height = tip.offsetHeight;
    const left = x + 16 + width > root.clientWidth ? x - width - 16 : x + 16;
    tip.style.left = Math.max(8, left) + scrollX + "px";
    tip.style.top = Math.max(8, Math.min(y - height / 2, innerHeight - height - 8)) + scrollY + "px";
  };
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointerover", (event) => {
    const slot = slotOf(event.target);
    if (slot && event.pointerType !== "touch") say(slot); else hide();
  });
  document.addEventListener("pointermove", (event) => { if (!tip.hidden) place(event.clientX, event.clientY); });
  document.addEventListener("focusin", (event) => {
    const slot = slotOf(event.target);
    if (!slot || !slot.matches(":focus-visible")) return hide();
    say(slot);
    const box = slot.getBoundingClientRect();
    place(box.right, box.top + box.height / 3);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // A command is copied by a click.
  if (navigator.clipboard) {
    for (const command of document.querySelectorAll("code.command")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", "Copy " + command.textContent);
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(command.textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1600);
      });
      command.after(button);
    }
  }

  // Where the pages do not fit, the current one is in sight.
  const current = document.querySelector("nav a[aria-current]");
  if (current) {
    const nav = current.parentElement;
    const box = current.getBoundingClientRect(), seen = nav.getBoundingClientRect();
    if (box.left < seen.left || box.right > seen.right) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - 24;
  }
})();
