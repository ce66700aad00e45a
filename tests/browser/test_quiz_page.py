"""A quiz on a page: it counts the first tries, and works with nothing but what is in the file."""

from __future__ import annotations

from nbconvert.filters import markdown2html

from ewc_tutorial.course import quizzes


def test_the_first_option_that_is_opened_counts(browser, tmp_path):
    items = quizzes.load("03")
    page_file = tmp_path / "quiz.html"
    script = quizzes.SCRIPT.read_text(encoding="utf-8")
    body = markdown2html(quizzes.render(items))
    page_file.write_text(
        f"<!doctype html><meta charset=utf-8><body>{body}<script>{script}</script>",
        encoding="utf-8",
    )
    page = browser.new_page()
    page.goto(page_file.as_uri())
    status = page.get_by_role("status")
    answers = page.locator("details.quiz")
    assert answers.count() == sum(len(item.options) for item in items)
    start = 0
    for n, item in enumerate(items):
        right = next(i for i, option in enumerate(item.options) if option.right)
        wrong = next(i for i, option in enumerate(item.options) if not option.right)
        # The first question is answered wrongly first; that it is then put right is too late.
        for choice in (wrong, right) if n == 0 else (right, wrong):
            option = answers.nth(start + choice)
            option.locator("summary").focus()
            page.keyboard.press("Enter")
            assert item.options[choice].why[:20] in option.inner_text()
        start += len(item.options)
        page.wait_for_function(
            "n => document.querySelector('[role=status]').textContent.startsWith(n)",
            arg=f"{n} of {n + 1} right at the first try",
        )
    assert "to go" not in status.inner_text()
    page.close()
