//! Where a repository is in the paths of the two Bitbuckets.

use orchestra_events::repo::RepoRef;
use reqwest::Url;
use serde_json::{Value, json};

use super::ForgeError;
use super::http::segment;

/// A repository's two names.
fn parts<'r>(repo: &RepoRef, path: &'r str, form: &str) -> Result<(&'r str, &'r str), ForgeError> {
    path.split_once('/').filter(|(_, slug)| !slug.contains('/')).ok_or_else(|| ForgeError::NotFound {
        repo: repo.to_string(),
        forge: Some(format!("a repository there is named {form}")),
    })
}

/// `workspace/name` on Bitbucket Cloud.
pub(super) struct CloudPlace<'r> {
    workspace: &'r str,
    slug: &'r str,
}

impl<'r> CloudPlace<'r> {
    /// Of a repository; one that is not named like this cannot be there.
    pub(super) fn of(repo: &'r RepoRef) -> Result<Self, ForgeError> {
        let (workspace, slug) = parts(repo, repo.path(), "workspace/name")?;
        Ok(Self { workspace, slug })
    }

    pub(super) fn workspace(&self) -> &'r str {
        self.workspace
    }

    /// The path of something that belongs to it.
    pub(super) fn path(&self, rest: &str) -> String {
        format!("/repositories/{}/{}{rest}", segment(self.workspace), segment(self.slug))
    }

    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.workspace, self.slug)
    }
}

/// `PROJECT/name` or `~user/name` on Bitbucket Data Center.
pub(super) struct DataCenterPlace<'r> {
    project: &'r str,
    slug: &'r str,
}

impl<'r> DataCenterPlace<'r> {
    /// Of a repository; one that is not named like this cannot be there.
    pub(super) fn of(repo: &'r RepoRef) -> Result<Self, ForgeError> {
        // A clone URL has `scm` before the project; it is part of the path where the forge's git_url leaves it out.
        let path = repo.path().strip_prefix("scm/").unwrap_or(repo.path());
        let (project, slug) = parts(repo, path, "PROJECT/name or ~user/name")?;
        Ok(Self { project, slug })
    }

    pub(super) fn project(&self) -> &'r str {
        self.project
    }

    pub(super) fn slug(&self) -> &'r str {
        self.slug
    }

    /// The path of something that belongs to it, in one of the server's interfaces.
    pub(super) fn below(&self, interface: &str, rest: &str) -> String {
        format!("/{interface}/latest/projects/{}/repos/{}{rest}", segment(self.project), segment(self.slug))
    }

    /// The same in the main one.
    pub(super) fn api(&self, rest: &str) -> String {
        self.below("api", rest)
    }

    /// Whether it goes by these names: the server does not tell capitals from small letters.
    pub(super) fn is(&self, project: &str, slug: &str) -> bool {
        self.project.eq_ignore_ascii_case(project) && self.slug.eq_ignore_ascii_case(slug)
    }

    /// An end of a pull request. Versions before 8 want the repository named.
    pub(super) fn branch(&self, name: &str) -> Value {
        let repository = json!({"slug": self.slug, "project": {"key": self.project}});
        json!({"id": format!("refs/heads/{name}"), "repository": repository})
    }

    /// Its page.
    pub(super) fn page(&self, web: &str) -> String {
        let owner = match self.project.strip_prefix('~') {
            Some(user) => format!("users/{user}"),
            None => format!("projects/{}", self.project),
        };
        format!("{web}/{owner}/repos/{}", self.slug)
    }
}

/// Where all interfaces of a server are (`{base}/rest`), from `{base}`, `{base}/rest` or `{base}/rest/api/latest`.
pub(super) fn data_center_root(api: &Url) -> String {
    let path = api.path().trim_end_matches('/');
    let base = path.split_once("/rest/api/").map_or(path, |(base, _)| base);
    format!("{}/rest", base.strip_suffix("/rest").unwrap_or(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_found_from_each_way_of_naming_it() {
        for given in ["/bitbucket", "/bitbucket/rest", "/bitbucket/rest/api/latest", "/bitbucket/rest/api/1.0"] {
            let url = Url::parse(&format!("https://dc.example{given}")).expect("a URL");
            assert_eq!(data_center_root(&url), "/bitbucket/rest", "{given}");
        }
        let bare = Url::parse("https://dc.example").expect("a URL");
        assert_eq!(data_center_root(&bare), "/rest");
    }

    #[test]
    fn a_repository_is_named_with_or_without_scm_and_may_be_a_persons() {
        for (path, expected, page) in [
            ("PRJ/api", "/api/latest/projects/PRJ/repos/api", "/projects/PRJ/repos/api"),
            ("scm/PRJ/api", "/api/latest/projects/PRJ/repos/api", "/projects/PRJ/repos/api"),
            ("~ann/notes", "/api/latest/projects/~ann/repos/notes", "/users/ann/repos/notes"),
        ] {
            let repo = RepoRef::new("dc", path).expect("a reference");
            let place = DataCenterPlace::of(&repo).expect("a place");
            assert_eq!((place.api("").as_str(), place.page("").as_str()), (expected, page));
        }
        let deep = RepoRef::new("dc", "a/b/c").expect("a reference");
        assert!(matches!(DataCenterPlace::of(&deep), Err(ForgeError::NotFound { .. })));
        assert!(matches!(CloudPlace::of(&deep), Err(ForgeError::NotFound { .. })));
    }
}
