//! Reading a query: unknown parameters are refused, faults are collected.

use std::str::FromStr;

use actix_web::{HttpRequest, web};

use super::fields::{Faults, nearest};
use crate::problem::{Field, Problem};

/// Most parameters looked at.
pub const MAX_PARAMETERS: usize = 64;

/// The parameters of a request, taken one by one; what nobody took is unknown.
pub struct Parameters {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
    faults: Faults,
}

impl Parameters {
    /// The parameters of this request.
    pub fn of(request: &HttpRequest) -> Result<Self, Problem> {
        Self::read(request.query_string())
    }

    /// The parameters of a form that was filled in: it sends the fields that were left blank too.
    pub fn of_form(request: &HttpRequest) -> Result<Self, Problem> {
        let mut parameters = Self::of(request)?;
        parameters.given.retain_mut(|(_, value)| {
            *value = value.trim().to_owned();
            !value.is_empty()
        });
        Ok(parameters)
    }

    /// The parameters in this query.
    pub fn read(query: &str) -> Result<Self, Problem> {
        let given = web::Query::<Vec<(String, String)>>::from_query(query)
            .map(web::Query::into_inner)
            .ok()
            .filter(|given| given.len() <= MAX_PARAMETERS);
        let Some(given) = given else {
            let detail = format!("expected at most {MAX_PARAMETERS} parameters as name=value&…");
            return Err(Problem::invalid_query(vec![Field { pointer: "?".to_owned(), detail }]));
        };
        Ok(Self { given, known: Vec::new(), faults: Faults::default() })
    }

    /// Notes a fault of a parameter.
    pub fn fault(&mut self, name: &str, detail: impl Into<String>) {
        self.faults.add(format!("?{name}"), detail);
    }

    /// A parameter's text; an empty one is absent.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.given(name).filter(|text| !text.is_empty())
    }

    fn given(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let mut found = None;
        let mut twice = false;
        self.given.retain_mut(|(given, value)| {
            if given != name {
                return true;
            }
            twice |= found.is_some();
            found = Some(std::mem::take(value));
            false
        });
        if twice {
            self.fault(name, "comes twice; say it once");
        }
        found
    }

    /// A parameter that parses. An empty one says nothing that could be meant.
    pub fn parsed<T: FromStr>(&mut self, name: &'static str, expected: &str) -> Option<T> {
        let text = self.given(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.fault(name, format!("expected {expected}"));
        }
        parsed
    }

    /// One of a few words. The empty text is none of them.
    pub fn one_of<T>(
        &mut self,
        name: &'static str,
        known: impl FnOnce(&str) -> Option<T>,
        expected: &str,
    ) -> Option<T> {
        let text = self.given(name)?;
        let found = known(&text);
        if found.is_none() {
            self.fault(name, format!("expected one of {expected}"));
        }
        found
    }

    /// How many things on one page.
    pub fn limit(&mut self, default: usize, max: usize) -> usize {
        match self.parsed::<usize>("limit", &format!("a whole number from 1 to {max}")) {
            Some(limit) if (1..=max).contains(&limit) => limit,
            Some(_) => {
                self.fault("limit", format!("expected a whole number from 1 to {max}"));
                default
            }
            None => default,
        }
    }

    /// Refuses what nobody took and everything noted so far.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.given) {
            let detail = match nearest(&name, self.known.iter().copied()) {
                Some(known) => format!("is not known here; did you mean `{known}`?"),
                None => format!("is not known here; known are {}", self.known.join(", ")),
            };
            let name: String = name.chars().take(64).collect();
            self.fault(&name, detail);
        }
        self.faults.none_in_query()
    }
}
