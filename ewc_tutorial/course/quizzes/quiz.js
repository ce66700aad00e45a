// Counts which questions of a page's quiz were answered right at the first try. Nothing is stored.
(() => {
  const questions = [];
  for (const option of document.querySelectorAll("details.quiz")) {
    const before = option.previousElementSibling;
    if (before && before.matches("details.quiz")) questions.at(-1).push(option);
    else questions.push([option]);
  }
  if (!questions.length) return;
  const score = document.createElement("p");
  score.setAttribute("role", "status");
  score.className = "quiz-score";
  questions.at(-1).at(-1).after(score);
  let answered = 0;
  let right = 0;
  for (const options of questions) {
    let tried = false;
    for (const option of options) {
      option.addEventListener("toggle", () => {
        if (tried || !option.open) return;
        tried = true;
        answered += 1;
        right += option.textContent.includes("✓") ? 1 : 0;
        score.textContent =
          `${right} of ${answered} right at the first try` +
          (answered < questions.length ? `, ${questions.length - answered} to go.` : ".");
      });
    }
  }
})();
