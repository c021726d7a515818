"use strict";
(() => {
  const choice = document.getElementById("class-filter");
  if (!choice) return;
  const marked = [...document.querySelectorAll("[data-class]")];
  const show = () => {
    const chosen = choice.value;
    document.body.classList.toggle("filtered", chosen !== "");
    for (const element of marked) {
      const classes = element.getAttribute("data-class").split(" ");
      element.classList.toggle("on", chosen !== "" && classes.includes(chosen));
    }
    for (const note of document.querySelectorAll(".no-match")) {
      const figures = note.parentElement.querySelectorAll("figure[data-class]");
      const none = chosen !== "" && ![...figures].some((f) => f.classList.contains("on"));
      note.classList.toggle("shown", none);
    }
  };
  document.documentElement.classList.add("js");
  choice.addEventListener("change", show);
  // A browser may keep the choice when the page is loaded again.
  show();
})();
