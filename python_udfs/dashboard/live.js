// Fetches the page's content again and again, and says so when it cannot. Nothing is asked while the page is hidden.
const live = document.getElementById("live");
const everyMs = Number(document.currentScript.dataset.everyS) * 1000;
async function update() {
  if (document.hidden) return;
  try {
    const answer = await fetch("live", { cache: "no-store", signal: AbortSignal.timeout(20000) });
    if (!answer.ok) throw new Error(answer.status);
    const wide = [...live.querySelectorAll(".scroll")].map((e) => e.scrollLeft);
    live.innerHTML = await answer.text();
    live.querySelectorAll(".scroll").forEach((e, i) => { e.scrollLeft = wide[i] ?? 0; });
    document.body.classList.remove("lost");
  } catch {
    document.body.classList.add("lost");
  }
}
async function forever() {
  for (;;) {
    await new Promise((done) => setTimeout(done, everyMs));
    await update();
  }
}
document.addEventListener("visibilitychange", update);
forever();
