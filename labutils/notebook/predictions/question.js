// The controls of a prediction: those that every browser has, so that keyboards, screen readers and zoom work.

const PENDING = "Not kept yet. If this stays, the notebook's kernel is busy or gone.";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// An input whose keys are its own; JupyterLab looks for this attribute at the element that has the focus.
const makeInput = (attributes) => make("input", { ...attributes, "data-lm-suppress-shortcuts": "true" });

// A field for a number with its unit; empty is no answer.
function makeNumber({ low, high }, { text, unit }, move) {
  const input = makeInput({ type: "number", min: low, max: high, step: "any", "aria-label": unit ? `${text} (${unit})` : text });
  input.addEventListener("change", () => move(input.value === "" ? null : Number(input.value)));
  return { node: make("span", {}, input, ` ${unit}`), show: (value) => (input.value = value ?? "") };
}

// A radio button for each text.
function makeChoice({ options }, { id }, move) {
  const inputs = options.map((option) => makeInput({ type: "radio", name: id, value: option }));
  inputs.forEach((input) => input.addEventListener("change", () => move(input.value)));
  const labels = inputs.map((input, place) => make("label", {}, input, ` ${options[place]}`));
  const show = (value) => inputs.forEach((input) => (input.checked = input.value === value));
  return { node: make("div", { class: "choices" }, ...labels), show };
}

// A slider, which counts as answered once it was moved or clicked.
function makeSlider({ label, low, high, step }, { unit }, move) {
  const input = makeInput({ type: "range", min: low, max: high, step, "aria-label": label });
  const said = make("span", { class: "said", "aria-hidden": "true" });
  const value = () => Number(Number(input.value).toPrecision(4));
  const say = (words) => {
    said.textContent = words;
    input.setAttribute("aria-valuetext", words);
  };
  input.addEventListener("input", () => say(`${value()} ${unit}`.trim()));
  for (const event of ["change", "click"]) input.addEventListener(event, () => move(value()));
  const show = (answer) => {
    input.value = answer === null ? (low + high) / 2 : answer;
    say(answer === null ? "not set" : `${answer} ${unit}`.trim());
  };
  return { node: make("div", { class: "slider" }, make("span", { class: "label" }, label), input, said), show };
}

const CONTROLS = { number: makeNumber, choice: makeChoice, slider: makeSlider };

function render({ model, el }) {
  const shared = { text: model.get("text"), unit: model.get("unit"), id: crypto.getRandomValues(new Uint32Array(2)).join("-") };
  const said = make("span", { role: "status" });
  const controls = model.get("fields").map((field, place) => {
    const move = (answer) => {
      model.send({ place, answer });
      said.textContent = PENDING;
    };
    return CONTROLS[field.control](field, shared, move);
  });
  el.append(make("fieldset", { class: "labutils-question", "aria-label": shared.text },
    ...controls.map(({ node }) => node), said));
  const show = () => model.get("answers").forEach((answer, place) => controls[place].show(answer));
  model.on("change:answers", show);
  model.on("msg:custom", (message) => (said.textContent = message.said));
  show();
  said.textContent = model.get("said");
}

export default { render };
