//! The same promises on every forge: one suite, run against a stand-in of each forge whose requests are held against the
//! forge's own OpenAPI description, and against a plain git server and a local folder.

mod on_github;
mod refusals;
mod wishes;
mod world;

use orchestra_runtime::forge::ForgeKind;

/// One test per scenario and forge.
macro_rules! parity {
    ($(fn $scenario:ident in $file:ident;)*) => {
        parity!(@kinds [
            github Github, bitbucket_cloud BitbucketCloud, bitbucket_dc BitbucketDc, gitlab Gitlab, plain Plain, local Local
        ] [$($scenario $file)*]);

        const SCENARIOS: usize = [$(stringify!($scenario)),*].len();
    };
    (@kinds [$($module:ident $kind:ident),*] $scenarios:tt) => {
        $(parity!(@one $module $kind $scenarios);)*

        const KINDS: [ForgeKind; 6] = [$(ForgeKind::$kind),*];
    };
    (@one $module:ident $kind:ident [$($scenario:ident $file:ident)*]) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $scenario() {
                    let world = crate::world::World::new(orchestra_runtime::forge::ForgeKind::$kind).await;
                    crate::$file::$scenario(&world).await;
                    world.end();
                }
            )*
        }
    };
}

parity! {
    fn the_repository_is_known_by_what_stays in wishes;
    fn a_pull_request_is_opened in wishes;
    fn a_repeat_opens_no_second_one in wishes;
    fn a_lost_reply_leaves_one_pull_request in wishes;
    fn a_draft_is_a_draft_where_there_are_any in wishes;
    fn reviewers_are_asked_and_the_unknown_left_out in wishes;
    fn labels_are_given_or_noted in wishes;
    fn the_light_goes_from_pending_to_success in wishes;
    fn a_comment_is_said_once_and_then_changed in wishes;
    fn a_pull_request_is_described_anew in wishes;
    fn a_protected_branch_is_known in wishes;
    fn somebody_elses_pull_request_is_left_as_it_is in wishes;
    fn our_comment_is_found_behind_many_others in wishes;
    fn a_comment_that_quotes_ours_is_left_alone in wishes;
    fn a_branch_that_shows_up_late_is_waited_for in wishes;
    fn ours_is_given_the_words_of_the_newest_attempt in wishes;
    fn two_at_once_open_one in wishes;
    fn many_at_once_are_created_one_after_the_other in wishes;
    fn a_dead_token_is_named in refusals;
    fn a_reading_token_is_told_what_it_lacks in refusals;
    fn a_hidden_repository_is_not_found in refusals;
    fn an_archived_repository_takes_nothing in refusals;
    fn a_short_limit_is_waited_out in refusals;
    fn a_long_limit_is_told in refusals;
    fn a_server_error_is_asked_again in refusals;
    fn a_web_page_is_no_answer in refusals;
    fn the_token_follows_no_redirect in refusals;
    fn a_silent_forge_is_given_up in refusals;
    fn a_branch_without_work_is_refused_with_the_forges_sentence in refusals;
    fn no_text_repeats_the_token in refusals;
}

#[test]
fn every_kind_of_forge_makes_every_promise() {
    assert_eq!(KINDS.len(), ForgeKind::ALL.len());
    assert!(ForgeKind::ALL.iter().all(|kind| KINDS.contains(kind)));
    const { assert!(SCENARIOS >= 20) };
}
