//! A token that changes while work goes on: a refused operation asks for the present one, and is done again with it, once.

use std::future::Future;

use secrecy::{ExposeSecret, SecretString};

use super::error::GitError;

/// Does a remote operation with the token that `current` gives. When it fails for a reason that another token could mend,
/// and `current` gives another one by then, the whole operation is done once more with that one; its result is the result.
///
/// `attempt` makes the remote as well: a token of another kind may go with another user name.
pub async fn with_current_token<T, F>(
    current: impl Fn() -> Option<SecretString>,
    attempt: impl Fn(Option<SecretString>) -> F,
) -> Result<T, GitError>
where
    F: Future<Output = Result<T, GitError>>,
{
    let first = current();
    let result = attempt(first.clone()).await;
    match result {
        Err(error) if error.concerns_token() => {
            let now = current();
            let same = match (&first, &now) {
                (Some(first), Some(now)) => first.expose_secret() == now.expose_secret(),
                // What was taken away cannot help.
                (_, None) => true,
                (None, Some(_)) => false,
            };
            if same { Err(error) } else { attempt(now).await }
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn rejected() -> GitError {
        GitError::TokenRejected { repo: "r".to_owned(), forge: None }
    }

    /// Runs with the tokens that are current one after the other; `good` is the one that works.
    async fn run(tokens: &[Option<&str>], good: &str, refuse: fn() -> GitError) -> (Result<(), GitError>, Vec<String>) {
        let (asked, seen) = (RefCell::new(0), RefCell::new(Vec::new()));
        let current = || {
            let mut asked = asked.borrow_mut();
            *asked += 1;
            tokens[*asked - 1].map(SecretString::from)
        };
        let attempt = |token: Option<SecretString>| {
            let token = token.map(|token| token.expose_secret().to_owned()).unwrap_or_default();
            seen.borrow_mut().push(token.clone());
            async move { if token == good { Ok(()) } else { Err(refuse()) } }
        };
        let result = with_current_token(current, attempt).await;
        (result, seen.into_inner())
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_by_the_present_one_once() {
        assert_eq!(run(&[Some("a")], "a", rejected).await, (Ok(()), vec!["a".to_owned()]));
        let both = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(run(&[Some("a"), Some("b")], "b", rejected).await, (Ok(()), both.clone()));
        assert_eq!(run(&[Some("a"), Some("b")], "c", rejected).await, (Err(rejected()), both));
        assert_eq!(run(&[None, Some("b")], "b", rejected).await, (Ok(()), vec![String::new(), "b".to_owned()]));
    }

    #[tokio::test]
    async fn the_same_token_is_not_shown_twice() {
        let once = vec!["a".to_owned()];
        assert_eq!(run(&[Some("a"), Some("a")], "b", rejected).await, (Err(rejected()), once.clone()));
        assert_eq!(run(&[Some("a"), None], "b", rejected).await, (Err(rejected()), once.clone()));
        let network = || GitError::PushTooLarge { repo: "r".to_owned() };
        assert_eq!(run(&[Some("a"), Some("b")], "b", network).await, (Err(network()), once), "no token mends that");
    }
}
