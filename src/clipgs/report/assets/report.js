// The report's splats: a row of pictures, of which one is turned in the viewer. Their data is in the page.
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const splat = splatViewer(viewer);
  const choices = [...viewer.querySelectorAll("button[data-splat]")];
  if (splat.still) viewer.querySelector(".hint").textContent = "This browser has no WebGL 2: pictures instead of splats.";

  const choose = (button) => {
    for (const choice of choices) choice.setAttribute("aria-pressed", String(choice === button));
    viewer.querySelector(".poster").src = button.querySelector("img").src;
    viewer.querySelector(".note").textContent = button.dataset.caption;
    if (splat.still) return;
    const text = document.getElementById(button.dataset.splat).textContent;
    splat.show(Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0)));
  };
  for (const button of choices) button.addEventListener("click", () => choose(button));
  if (choices.length) choose(choices[0]);
})();
