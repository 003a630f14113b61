//! What operators may and may not do to the fragments, and that nothing gets through them unescaped.

use super::*;

fn folder(files: &[(Fragment, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (fragment, source) in files {
        std::fs::write(folder.path().join(fragment.file()), source).expect("a file");
    }
    folder
}

fn everything(fragments: &Fragments) -> Vec<Html> {
    let rows = TimelineRow::samples().into_iter().map(|row| fragments.timeline_row(&row));
    let tasks = TaskRow::samples().into_iter().map(|row| fragments.task_row(&row));
    let bars = BudgetBar::samples().into_iter().map(|bar| fragments.budget_bar(&bar));
    rows.chain(tasks).chain(bars).collect()
}

#[test]
fn every_fragment_renders_every_sample_and_escapes_it() {
    for html in everything(&Fragments::embedded()) {
        let html = html.as_str();
        assert!(!html.trim().is_empty());
        assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("style="), "{html}");
        assert!(!html.contains("href=\"javascript:"), "{html}");
    }
}

#[test]
fn an_operators_template_is_used_and_escapes_too() {
    let folder = folder(&[(Fragment::TaskRow, "<li id=\"row-{{ id }}\">{{ task }}</li>")]);
    assert!(Fragments::check(folder.path()).is_empty());
    let fragments = Fragments::with_overrides(folder.path());
    let html = fragments.task_row(&TaskRow::samples()[0]);
    assert!(html.as_str().starts_with("<li id=\"row-task_") && html.as_str().contains("&lt;script&gt;"), "{html}");
    assert_eq!(
        fragments.budget_bar(&BudgetBar::samples()[0]),
        Fragments::embedded().budget_bar(&BudgetBar::samples()[0])
    );
}

#[test]
fn a_broken_template_is_named_and_replaced_by_the_embedded_one() {
    let broken = [
        (Fragment::TaskRow, "{{ tsk }}", "undefined"),
        (Fragment::TaskRow, "{% for x in %}", "syntax"),
        (
            Fragment::TaskRow,
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
            "fuel",
        ),
        (Fragment::TaskRow, "{% include '../../../etc/passwd' %}", "not found"),
    ];
    for (fragment, source, complaint) in broken {
        let folder = folder(&[(fragment, source)]);
        let wrong = Fragments::check(folder.path());
        assert_eq!(wrong.len(), 1, "{source}");
        let said = wrong[0].1.to_string();
        assert!(said.contains(complaint) && said.contains(fragment.file()), "{source}: {said}");
        let row = &TaskRow::samples()[0];
        let shown = Fragments::with_overrides(folder.path()).task_row(row);
        assert_eq!(shown, Fragments::embedded().task_row(row), "{source}");
    }
}

#[test]
fn a_long_text_does_not_run_out_of_fuel() {
    let mut row = TimelineRow::samples().remove(0);
    let text = "`a` **b** c\n\n".repeat(2_000);
    let (text, _) = crate::pages::format::head_of(&text, crate::pages::timeline::MAX_ROW_TEXT);
    row.prose = crate::pages::prose::read(text, crate::pages::prose::Links::AsText);
    assert!(Fragments::embedded().timeline_row(&row).as_str().contains("<code>a</code>"));
}
