// Pointing at a node shows what it reads and who reads it.
for (const svg of document.querySelectorAll("svg.flow")) {
  const find = (n) => svg.querySelectorAll(`.card[data-n="${n}"]`);
  svg.addEventListener("pointerover", (event) => {
    const card = event.target.closest(".card");
    svg.querySelectorAll(".on").forEach((e) => e.classList.remove("on"));
    svg.classList.toggle("near", Boolean(card));
    if (!card) return;
    card.classList.add("on");
    const n = card.dataset.n;
    for (const wire of svg.querySelectorAll(".wire")) {
      const readers = wire.dataset.b.split(" ");
      if (wire.dataset.a !== n && !readers.includes(n)) continue;
      wire.classList.add("on");
      [wire.dataset.a, ...(wire.dataset.a === n ? readers : [])].forEach((m) => find(m).forEach((e) => e.classList.add("on")));
    }
  });
  svg.addEventListener("pointerleave", () => svg.classList.remove("near"));
}
// A kind that the strip points at is opened.
const open = () => { const e = document.getElementById(location.hash.slice(1)); if (e && "open" in e) e.open = true; };
addEventListener("hashchange", open);
open();
