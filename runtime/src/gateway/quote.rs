//! What a caller's request can cost at most, or why that cannot be said.

use std::collections::BTreeMap;

use orchestra_events::ledger::Quote;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::content::{CacheControl, Contents, Refused};
use super::request::{least_output, whole};
use super::route::Target;
use super::scan::{Object, Text};
use super::{Api, GatewayPolicy};
use crate::model::{CacheWrites, HostedTool, ImageRules, Price, image_tokens, input_bound, quote};

/// What Anthropic adds for each of its own client-side tools; the longest, the text editor's, measures 700 tokens (the
/// tools' pages at platform.claude.com).
const CLIENT_TOOL_TOKENS: u64 = 1_500;

/// A request is answered at most so often at once.
const MAX_REPLIES: u64 = 128;

pub(super) struct Bounded {
    pub quote: Quote,
    pub hosted: bool,
}

/// Top-level fields that bring in what is not in the request, or another price.
const UNBOUNDED: &[(&str, &str)] = &[
    ("previous_response_id", "send the conversation itself, with store: false"),
    ("conversation", "send the conversation itself, with store: false"),
    ("prompt", "send the prompt itself"),
    ("mcp_servers", "run the servers inside the sandbox"),
    ("container", "run the code inside the sandbox"),
    ("web_search_options", "search with a tool of your own"),
    ("prediction", "leave it out"),
    ("audio", "ask for text"),
    ("best_of", "use n"),
    // A server of llama.cpp's believes this one where both are given.
    ("n_predict", "use max_tokens"),
    ("models", "name one model"),
    ("fallbacks", "name one model"),
    ("plugins", "leave them out"),
];

/// Bounds a request of so many bytes.
pub(super) fn bound(
    api: Api,
    object: &Object<'_>,
    target: &Target,
    bytes: usize,
    wanted: u64,
    policy: &GatewayPolicy,
) -> Result<Bounded, Refused> {
    for (field, instead) in UNBOUNDED {
        if object.get(field).is_some_and(|field| field.raw != "[]") {
            return Err(format!("{field:?} makes the cost of a call unbounded; {instead}."));
        }
    }
    // Some servers match names without regard to case; which of two they would believe is not known.
    if let Some(field) = object.fields.iter().find(|field| field.key.bytes().any(|byte| byte.is_ascii_uppercase())) {
        let name: String = field.key.chars().take(80).collect();
        return Err(format!("{name:?} is no field of this API; names are in lower case."));
    }
    if object.get("background").is_some_and(|field| field.raw != "false") {
        return Err("\"background\" is not served here: a reply must come while the sandbox runs.".into());
    }
    compaction(object)?;
    prices_differently(object)?;
    let price = &target.model.price;
    let searched = policy.hosted_tools.contains_key(&HostedTool::WebSearch);
    let mut contents = Contents::default();
    let mut lists: Vec<&str> = object.get("tools").map(|field| field.raw).into_iter().collect();
    let raw = |name: &str| object.get(name).map(|field| field.raw);
    match api {
        Api::Messages | Api::CountTokens => {
            if let Some(mark) = raw("cache_control") {
                let mark: CacheControl<'_> = parse(mark, "cache_control")?;
                contents.mark(Some(&mark));
            }
            raw("system").map_or(Ok(()), |system| contents.anthropic(system, searched, 0))?;
            raw("messages").map_or(Ok(()), |messages| contents.messages(messages, searched))?;
        }
        Api::Chat => raw("messages").map_or(Ok(()), |messages| contents.chat(messages))?,
        Api::Responses => {
            if let Some(input) = raw("input") {
                lists.extend(contents.responses(input, searched)?);
            }
        }
    }
    let mut tools = Tools::default();
    for list in lists {
        tools.read(api, list, object, (price, policy), &mut contents, 0)?;
    }
    let rules = if target.is_anthropic {
        ImageRules::Anthropic
    } else if target.renamed {
        ImageRules::Openai
    } else {
        ImageRules::Other
    };
    let each = image_tokens(price, rules, &target.model.model_id);
    let text = (bytes as u64).saturating_sub(contents.image_bytes);
    let mut input =
        input_bound(text, None).saturating_add(contents.images.saturating_mul(each)).saturating_add(tools.hidden);
    let mut calls = 0_u128;
    for (tool, uses) in &tools.uses {
        let allowance = policy.hosted_tools.get(tool).copied().unwrap_or(0);
        input = input.saturating_add(uses.saturating_mul(allowance));
        calls = calls.saturating_add(u128::from(*uses) * u128::from(price.tool(*tool).unwrap_or(0)));
    }
    // Anthropic writes to a cache where it is told to; others may do so by themselves.
    let writes = match contents.writes {
        CacheWrites::None if !target.is_anthropic => CacheWrites::FiveMinutes,
        writes => writes,
    };
    let mut quote = quote(price, writes, input, wanted);
    quote.input_picos = quote.input_picos.saturating_add(calls);
    quote.replies = replies(object)?;
    quote.least_output = least_output(thinking(object)?, quote.wanted_output);
    Ok(Bounded { quote, hosted: !tools.uses.is_empty() })
}

fn parse<'a, T: Deserialize<'a>>(raw: &'a str, field: &str) -> Result<T, Refused> {
    serde_json::from_str(raw).map_err(|error| format!("{field:?} is not what the API documents: {error}."))
}

fn replies(object: &Object<'_>) -> Result<u64, Refused> {
    match object.get("n").map(whole) {
        None => Ok(1),
        Some(Ok(n)) if (1..=MAX_REPLIES).contains(&n) => Ok(n),
        Some(_) => Err(format!("\"n\" is not a whole number from 1 to {MAX_REPLIES}.")),
    }
}

fn thinking(object: &Object<'_>) -> Result<Option<u64>, Refused> {
    #[derive(Deserialize)]
    struct Thinking {
        budget_tokens: Option<u64>,
    }
    match object.get("thinking") {
        Some(field) if field.raw.starts_with('{') => {
            parse::<Thinking>(field.raw, "thinking").map(|it| it.budget_tokens)
        }
        _ => Ok(None),
    }
}

/// The provider rewrites the conversation by itself, with calls that the caller does not see.
fn compaction(object: &Object<'_>) -> Result<(), Refused> {
    #[derive(Deserialize)]
    struct Management<'a> {
        #[serde(borrow, default)]
        edits: Vec<Edit<'a>>,
    }
    #[derive(Deserialize)]
    struct Edit<'a> {
        #[serde(borrow, rename = "type")]
        kind: Option<Text<'a>>,
    }
    let Some(field) = object.get("context_management") else { return Ok(()) };
    let edits = if field.raw.starts_with('[') {
        parse::<Vec<Edit<'_>>>(field.raw, "context_management")?
    } else {
        parse::<Management<'_>>(field.raw, "context_management")?.edits
    };
    let clears = |edit: &Edit<'_>| edit.kind.as_ref().is_some_and(|kind| kind.0.starts_with("clear_"));
    if edits.iter().all(clears) {
        Ok(())
    } else {
        Err("\"context_management\" lets the provider compact the conversation at a cost that cannot be bounded; compact it in the agent.".into())
    }
}

/// Modes whose price is not the row's.
fn prices_differently(object: &Object<'_>) -> Result<(), Refused> {
    for (field, standard) in [("speed", &["\"standard\""][..]), ("inference_geo", &["\"global\"", "\"not_available\""])]
    {
        if object.get(field).is_some_and(|field| !standard.contains(&field.raw)) {
            return Err(format!("{field:?} changes the price of a call; leave it out."));
        }
    }
    if object.get("modalities").is_some_and(|field| field.raw.contains("audio")) {
        return Err("\"modalities\" asks for audio, which has no price here; ask for text.".into());
    }
    Ok(())
}

#[derive(Default)]
struct Tools {
    /// At most so many uses of what the provider runs.
    uses: BTreeMap<HostedTool, u64>,
    /// What the provider adds to the request for its own client-side tools.
    hidden: u64,
}

#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    cache_control: Option<CacheControl<'a>>,
    max_uses: Option<u64>,
    #[serde(borrow)]
    environment: Option<Environment<'a>>,
    #[serde(borrow)]
    execution: Option<Text<'a>>,
    /// Of a namespace.
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Environment<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
}

/// Namespaces of tools are not nested; a list that is deeper than this is nobody's.
const MAX_TOOL_DEPTH: u32 = 2;

impl Tools {
    fn read(
        &mut self,
        api: Api,
        list: &str,
        object: &Object<'_>,
        grants: (&Price, &GatewayPolicy),
        contents: &mut Contents,
        depth: u32,
    ) -> Result<(), Refused> {
        let tools: Vec<Tool<'_>> = parse(list, "tools")?;
        for tool in tools {
            contents.mark(tool.cache_control.as_ref());
            let kind = tool.kind.as_ref().map_or("", |kind| &*kind.0);
            let hosted = match api {
                Api::Messages | Api::CountTokens => match kind {
                    "" | "custom" => continue,
                    _ if ["bash_", "text_editor_", "computer_", "memory_"]
                        .iter()
                        .any(|client| kind.starts_with(client)) =>
                    {
                        self.hidden = self.hidden.saturating_add(CLIENT_TOOL_TOKENS);
                        continue;
                    }
                    "web_search_20250305" => Some(HostedTool::WebSearch),
                    "web_fetch_20250910" => Some(HostedTool::WebFetch),
                    _ => None,
                },
                Api::Chat | Api::Responses => match kind {
                    "function" | "custom" | "local_shell" | "apply_patch" => continue,
                    "namespace" if depth < MAX_TOOL_DEPTH => {
                        if let Some(inner) = tool.tools {
                            self.read(api, inner.get(), object, grants, contents, depth + 1)?;
                        }
                        continue;
                    }
                    "shell" if tool.environment.as_ref().is_none_or(is_local) => continue,
                    "tool_search" if tool.execution.as_ref().is_some_and(|by| by.0 == "client") => continue,
                    "web_search" => Some(HostedTool::WebSearch),
                    _ => None,
                },
            };
            let (price, policy) = grants;
            let name: String = kind.chars().take(80).collect();
            let granted = hosted.filter(|tool| price.tool(*tool).is_some() && policy.hosted_tools.contains_key(tool));
            let Some(hosted) = granted else {
                return Err(format!(
                    "The tool {name:?} is run by the provider, which makes the cost of a call unbounded; leave it out (for \
                     Codex: web_search = \"disabled\"), or have the operator price it and grant it."
                ));
            };
            let uses = match tool.max_uses {
                Some(uses) => Some(uses),
                None => object.get("max_tool_calls").and_then(|field| field.raw.parse().ok()),
            };
            let Some(uses) = uses else {
                return Err(format!("The tool {name:?} may be used without limit; set max_uses (or max_tool_calls)."));
            };
            *self.uses.entry(hosted).or_default() += uses.min(u64::from(u32::MAX));
        }
        Ok(())
    }
}

fn is_local(environment: &Environment<'_>) -> bool {
    environment.kind.as_ref().is_some_and(|kind| kind.0 == "local")
}
