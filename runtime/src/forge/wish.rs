//! What the clients of all forges have in common: which errors lose an answer, and which cost only a part of a wish.

use super::{Feature, ForgeError, Note};

/// How many pages of comments are searched for ours. Ours is among the first on a pull request that we opened.
pub(super) const MAX_COMMENT_PAGES: usize = 10;
/// How often a pull request is created from a branch that the forge says is not there: where git and the interface are
/// answered by different machines, a branch that was just pushed is known to the one before it is to the other.
pub(super) const HEAD_TRIES: u32 = 3;
/// Comments of others that quote ours and are tried in vain before a new one is written.
pub(super) const MAX_QUOTES: usize = 5;
/// Reviewers and labels that one pull request is given; more are left out, with a note.
pub(super) const MAX_NAMES: usize = 20;

/// Whether what was asked for may have happened although no good answer came.
pub(super) fn answer_lost(error: &ForgeError) -> bool {
    match error {
        ForgeError::ConnectionLost { .. } | ForgeError::Unavailable { .. } => true,
        ForgeError::TokenMissing { .. }
        | ForgeError::TokenRejected { .. }
        | ForgeError::TokenLacksPermission { .. }
        | ForgeError::SsoRequired { .. }
        | ForgeError::AddressNotAllowed { .. }
        | ForgeError::CaptchaRequired { .. }
        | ForgeError::NotFound { .. }
        | ForgeError::Archived { .. }
        | ForgeError::RateLimited { .. }
        | ForgeError::Refused { .. }
        | ForgeError::Unreachable { .. }
        | ForgeError::NotAForge { .. } => false,
    }
}

/// Whether the forge would not do it for this token, as against a forge that cannot be reached, or a dead token.
pub(super) fn declined(error: &ForgeError) -> bool {
    match error {
        ForgeError::TokenLacksPermission { .. }
        | ForgeError::NotFound { .. }
        | ForgeError::Archived { .. }
        | ForgeError::Refused { .. } => true,
        ForgeError::TokenMissing { .. }
        | ForgeError::TokenRejected { .. }
        | ForgeError::SsoRequired { .. }
        | ForgeError::AddressNotAllowed { .. }
        | ForgeError::CaptchaRequired { .. }
        | ForgeError::RateLimited { .. }
        | ForgeError::Unavailable { .. }
        | ForgeError::Unreachable { .. }
        | ForgeError::ConnectionLost { .. }
        | ForgeError::NotAForge { .. } => false,
    }
}

/// A note that this part could not be had, because of this.
pub(super) fn note(feature: Feature, error: &ForgeError) -> Note {
    Note { feature, detail: error.to_string() }
}

/// For an extra such as a comment or a light: that the forge declines it is a note, anything else an error.
pub(super) fn extra<T>(feature: Feature, done: Result<T, ForgeError>) -> Result<Option<Note>, ForgeError> {
    match done {
        Ok(_) => Ok(None),
        Err(error) if declined(&error) => Ok(Some(note(feature, &error))),
        Err(error) => Err(error),
    }
}

/// Of giving a pull request of ours that was found the text of this attempt: whatever comes between is a note, for the
/// pull request is there.
pub(super) fn undescribed(done: Result<Option<Note>, ForgeError>) -> Option<Note> {
    done.unwrap_or_else(|error| Some(note(Feature::Descriptions, &error)))
}

/// The first [`MAX_NAMES`] of a list, without blanks and repetitions, and a note when some were left out.
pub(super) fn names(feature: Feature, wished: &[String], notes: &mut Vec<Note>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in wished.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if names.len() > MAX_NAMES {
        names.truncate(MAX_NAMES);
        notes.push(Note { feature, detail: format!("Only the first {MAX_NAMES} were asked for.") });
    }
    names
}

/// At most so many characters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
