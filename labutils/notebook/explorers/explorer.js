// What an explorer looks like: the controls that every browser has, so that keyboards, screen readers and zoom work.

const GONE = "Not connected: run this cell.";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A slider over ordered values, which says each in words.
function makeSlider({ label, words }, move) {
  const slider = make("input", { type: "range", min: 0, max: words.length - 1, "aria-label": label });
  const said = make("span", { class: "said", "aria-hidden": "true" });
  slider.addEventListener("input", () => move(Number(slider.value)));
  const show = (place) => {
    slider.value = place;
    said.textContent = words[place];
    slider.setAttribute("aria-valuetext", words[place]);
  };
  const disable = (off) => (slider.disabled = off);
  return { parts: [slider, said], show, disable };
}

// A button for each value, the chosen one pressed.
function makeToggles({ label, words }, move) {
  const buttons = words.map((word) => make("button", { type: "button" }, word));
  buttons.forEach((button, place) => button.addEventListener("click", () => move(place)));
  const show = (chosen) => buttons.forEach((button, place) => button.setAttribute("aria-pressed", place === chosen));
  const disable = (off) => buttons.forEach((button) => (button.disabled = off));
  return { parts: [make("div", { class: "toggles", role: "group", "aria-label": label }, ...buttons)], show, disable };
}

function makeCode() {
  const code = make("pre");
  const folded = make("details", {}, make("summary", {}, "The same in code"), code);
  const copy = make("button", { type: "button" }, "Copy the code");
  copy.addEventListener("click", () => {
    folded.open = true;
    getSelection().selectAllChildren(code);
    document.execCommand("copy"); // which works without https, too, where navigator.clipboard does not
    copy.textContent = "Copied";
  });
  const show = (text) => {
    code.textContent = text;
    copy.textContent = "Copy the code";
  };
  return { node: make("div", { class: "code" }, folded, copy), show };
}

function render({ model, el }) {
  const follow = (name, show) => {
    const update = () => show(model.get(name));
    model.on(`change:${name}`, update);
    update();
  };

  const settings = model.get("offers").map((setting) => {
    const move = (place) => {
      model.set("places", { ...model.get("places"), [setting.name]: place });
      model.save_changes();
    };
    return { ...setting, ...(setting.ordered ? makeSlider : makeToggles)(setting, move) };
  });
  const rows = settings.map(({ label, parts }) =>
    make("div", { class: "setting" }, make("span", { class: "label", "aria-hidden": "true" }, label), ...parts));
  const buttons = Object.entries(model.get("actions")).map(([action, words]) => {
    const button = make("button", { type: "button", class: `action ${action}` }, words);
    button.addEventListener("click", () => model.send({ press: action }));
    return [action, button];
  });
  const controls = make("fieldset", {}, ...rows, make("div", { class: "actions" }, ...buttons.map(([, button]) => button)));
  const bar = make("progress", { role: "progressbar", max: 1, "aria-label": "in training" });
  const words = make("span");
  const progress = make("div", { class: "in-training" }, bar, words);
  const status = make("div", { class: "status", role: "status" });
  const image = make("img");
  // It scrolls sideways where it is narrow: to shrink would make its words too small to read.
  const picture = make("div", { class: "picture", tabindex: 0, role: "group", "aria-label": "figure" }, image);
  const code = makeCode();
  const explorer = make("div", { class: "labutils-explorer" },
    controls, progress, status, picture, code.node);
  // Keys without a modifier are the controls' own; JupyterLab would move to another cell.
  explorer.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey) event.stopPropagation();
  });
  // The stand-in for notebooks without a kernel is hidden as long as this is there.
  el.append(explorer, make("style", {}, `#${model.get("stand_in_id")} { display: none }`));

  follow("places", (places) => settings.forEach(({ name, show }) => show(places[name])));
  follow("unused", (unused) => settings.forEach(({ name, disable }) => disable(unused.includes(name))));
  follow("enabled", (enabled) => {
    const focused = buttons.some(([, button]) => button === document.activeElement);
    for (const [action, button] of buttons) button.disabled = !enabled.includes(action);
    if (focused) buttons.find(([action]) => enabled.includes(action))?.[1].focus(); // else the keyboard is lost
  });
  follow("progress", ({ words: said, share }) => {
    progress.hidden = !said;
    words.textContent = said ?? "";
    bar.value = share ?? 0;
    bar.setAttribute("aria-valuetext", said ?? "");
  });
  follow("status", (html) => (status.innerHTML = html));
  follow("picture", ({ png, alt }) => {
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(new Blob([png], { type: "image/png" }));
    image.alt = alt;
    picture.hidden = !alt; // where the first answer failed
  });
  follow("code", code.show);

  const leave = () => {
    controls.disabled = progress.hidden = true;
    status.textContent = GONE;
  };
  // In JupyterLab the kernel's state is known: after a restart its widgets never come back.
  const session = model.widget_manager?.context?.sessionContext;
  const heed = (_, state) => ["restarting", "autorestarting", "terminating", "dead"].includes(state) && leave();
  session?.statusChanged.connect(heed);
  session?.kernelChanged.connect(leave);
  return () => {
    session?.statusChanged.disconnect(heed);
    session?.kernelChanged.disconnect(leave);
    URL.revokeObjectURL(image.src);
  };
}

export default { render };
