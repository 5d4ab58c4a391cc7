// A live explorer's controls over a chart of banked results: explorer.js with a page in the kernel's place.
function explore(place, { offers, places, answers, chart }) {
  const heard = {};
  const number = () => offers.reduce((sum, { name, words }) => sum * words.length + state.places[name], 0);
  const state = { offers, places, unused: [], actions: {}, enabled: [], progress: {}, code: "", stand_in_id: "none",
    status: "", picture: { png: new Uint8Array(), alt: "" } };
  const set = (name, value) => {
    state[name] = value;
    for (const hear of heard[`change:${name}`] ?? []) hear();
  };
  state.status = answers[number()];
  const model = {
    get: (name) => state[name],
    set,
    on: (event, hear) => (heard[event] ??= []).push(hear),
    save_changes: () => set("status", answers[number()]),
  };
  render({ model, el: place });
  place.querySelector(".code").remove();
  place.querySelector(".actions").remove();
  const figure = place.querySelector(".picture");
  figure.replaceChildren();
  figure.hidden = false;
  vegaEmbed(figure, chart, { actions: false, renderer: "svg" }).then(({ view }) => {
    model.on("change:places", () => {
      for (const { name, values } of offers) view.signal(`chosen_${name}`, values[state.places[name]]);
      view.runAsync();
    });
  });
}
