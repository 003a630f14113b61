//! The formats of well-known tokens: what they begin with, what follows, and how random that looks.
//!
//! Only formats that name themselves are here. A rule for "a long random string beside the word password" would stop
//! honest work several times a day. The formats are those that the issuers publish, or that their tokens plainly show
//! (GitHub: "Behind GitHub's new authentication token formats"; GitLab: "Token prefixes"; AWS: "IAM identifiers"; Slack:
//! "Token types"; Stripe: "API keys"; and so on); lengths are lower bounds where an issuer has changed them before.

/// One format.
pub(super) struct Rule {
    /// What the finding is called.
    pub kind: &'static str,
    /// One of these is in every token of the format: files without any are done after one pass.
    pub anchors: &'static [&'static str],
    /// How many bytes of the token stand before the anchor.
    pub lead: usize,
    /// Whether it may go on to the left of its lead.
    pub inside: bool,
    /// The whole token, `lead` included; bytes, not text. A group named by its number 1 is what the entropy is taken of.
    pub pattern: &'static str,
    /// Bits per byte below which it is a placeholder such as `ghp_xxxx…`.
    pub entropy: f32,
}

/// Bits per byte that random hexadecimal digits reach (at most 4).
const HEX: f32 = 2.6;
/// Bits per byte that random letters and digits reach (at most 6, and log2 of the length).
const MIXED: f32 = 3.2;
/// For tokens too short to say much.
const SHORT: f32 = 2.4;

const fn rule(kind: &'static str, anchors: &'static [&'static str], pattern: &'static str, entropy: f32) -> Rule {
    Rule { kind, anchors, lead: 0, inside: false, pattern, entropy }
}

/// The formats, the longer anchor before the shorter where they share their beginning.
pub(super) const RULES: &[Rule] = &[
    // Keys.
    rule(
        "private key",
        &["-----BEGIN "],
        // The header alone is in every program that reads keys; with a line of Base64 after it (and after the headers
        // of an encrypted one), real or escaped line ends, it is a key.
        r#"-----BEGIN (?:[A-Z0-9]{2,10} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[\s"',+]|\\[nrt]|(?:Proc-Type|DEK-Info|Version|Comment): [^\n\\]{1,200}){1,40}([A-Za-z0-9+/]{32,})"#,
        MIXED,
    ),
    rule(
        "PuTTY private key",
        &["PuTTY-User-Key-File-"],
        r"PuTTY-User-Key-File-[23]: [\s\S]{1,600}?Private-Lines: [0-9]{1,4}\s{1,2}([A-Za-z0-9+/]{32,})",
        MIXED,
    ),
    rule("age private key", &["AGE-SECRET-KEY-1"], r"AGE-SECRET-KEY-1([QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58})", MIXED),
    // Forges and package registries.
    rule("GitHub token (classic)", &["ghp_"], r"ghp_([A-Za-z0-9]{36,251})", MIXED),
    rule("GitHub token (fine-grained)", &["github_pat_"], r"github_pat_([A-Za-z0-9]{22}_[A-Za-z0-9]{59})", MIXED),
    rule(
        "GitHub token (OAuth, app or refresh)",
        &["gho_", "ghu_", "ghs_", "ghr_"],
        r"gh[ousr]_([A-Za-z0-9._-]{36,600})",
        MIXED,
    ),
    rule(
        "GitLab token",
        &[
            "glpat-", "gldt-", "glrt-", "glrtr-", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-",
            "glffct-", "gloas-",
        ],
        r"gl(?:pat|dt|rtr?|cbt|ptt|ft|imt|agent|soat|ffct|oas)-([A-Za-z0-9_.-]{20,300})",
        MIXED,
    ),
    rule(
        "Bitbucket or Atlassian token",
        &["ATATT3", "ATCTT3", "ATBB"],
        r"AT(?:ATT3|CTT3|BB)([A-Za-z0-9_=-]{28,300})",
        MIXED,
    ),
    rule("Bitbucket Data Center token", &["BBDC-"], r"BBDC-([A-Za-z0-9+/@_=-]{40,60})", MIXED),
    Rule {
        kind: "Azure DevOps token",
        anchors: &["AZDO"],
        lead: 76,
        inside: false,
        pattern: r"([A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4})",
        entropy: MIXED,
    },
    rule("npm token", &["npm_"], r"npm_([A-Za-z0-9]{36})", MIXED),
    rule("PyPI token", &["pypi-AgE"], r"pypi-AgE([A-Za-z0-9_-]{50,1000})", MIXED),
    rule("RubyGems key", &["rubygems_"], r"rubygems_([0-9a-f]{48})", HEX),
    rule("crates registry token", &["cio"], r"cio([A-Za-z0-9]{32})", MIXED),
    rule("NuGet key", &["oy2"], r"oy2([a-z0-9]{43})", MIXED),
    rule("Docker Hub token", &["dckr_pat_", "dckr_oat_"], r"dckr_[po]at_([A-Za-z0-9_-]{27,64})", MIXED),
    rule("Artifactory key", &["AKCp"], r"AKCp([A-Za-z0-9]{69})", MIXED),
    rule("SonarQube token", &["squ_", "sqp_", "sqa_"], r"sq[upa]_([0-9a-f]{40})", HEX),
    rule("CircleCI token", &["CCIPAT_", "CCIPRJ_"], r"CCIP(?:AT|RJ)_([A-Za-z0-9]{22}_[a-z0-9]{40})", MIXED),
    rule("Buildkite token", &["bkua_"], r"bkua_([a-z0-9]{40})", HEX),
    rule("Postman key", &["PMAK-"], r"PMAK-([0-9a-f]{24}-[0-9a-f]{34})", HEX),
    // Clouds and what runs on them.
    rule("AWS access key", &["AKIA", "ASIA", "ABIA", "ACCA"], r"A(?:KIA|SIA|BIA|CCA)([A-Z2-7]{16})", SHORT),
    rule(
        "AWS secret key",
        &[
            "aws_secret_access_key",
            "AWS_SECRET_ACCESS_KEY",
            "aws_secret_key",
            "secretAccessKey",
            "SecretAccessKey",
            "AWS_SECRET_KEY",
        ],
        r#"(?i:aws_secret_access_key|aws_secret_key|secretAccessKey)["'`]?\s{0,8}(?::=|=>|=|:|,)\s{0,8}["'`]?([A-Za-z0-9/+]{40})"#,
        3.8,
    ),
    rule("AWS Bedrock key", &["ABSKQmVkcm9ja"], r"ABSKQmVkcm9ja([A-Za-z0-9+/=]{90,280})", MIXED),
    rule("Google API key", &["AIza"], r"AIza([A-Za-z0-9_-]{35})", MIXED),
    rule("Google OAuth secret", &["GOCSPX-"], r"GOCSPX-([A-Za-z0-9_-]{28})", MIXED),
    rule("Google access token", &["ya29."], r"ya29\.([A-Za-z0-9_-]{40,1000})", MIXED),
    rule("Azure storage key", &["AccountKey="], r"AccountKey=([A-Za-z0-9+/]{86}==)", MIXED),
    Rule {
        kind: "Azure client secret",
        anchors: &["Q~"],
        lead: 4,
        inside: false,
        pattern: r"([A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34})",
        entropy: MIXED,
    },
    rule("DigitalOcean token", &["dop_v1_", "doo_v1_", "dor_v1_"], r"do[opr]_v1_([0-9a-f]{64})", HEX),
    rule("Alibaba access key", &["LTAI"], r"LTAI([A-Za-z0-9]{16,26})", MIXED),
    rule("Cloudflare origin key", &["v1.0-"], r"v1\.0-([0-9a-f]{24}-[0-9a-f]{146})", HEX),
    rule(
        "Fly.io token",
        &["FlyV1 fm", "fm1_", "fm2_", "fo1_"],
        r"(?:FlyV1 )?f[mo][12][ar]?_([A-Za-z0-9+/=_-]{43,2000})",
        MIXED,
    ),
    rule("Heroku key", &["HRKU-"], r"HRKU-([A-Za-z0-9_-]{36,70})", MIXED),
    rule("Netlify token", &["nfp_"], r"nfp_([A-Za-z0-9]{36,60})", MIXED),
    rule("Databricks token", &["dapi"], r"dapi([0-9a-f]{32})", HEX),
    Rule {
        kind: "Terraform Cloud token",
        anchors: &[".atlasv1."],
        lead: 14,
        inside: false,
        pattern: r"([A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70})",
        entropy: MIXED,
    },
    rule("Vault token", &["hvs.", "hvb.", "hvr."], r"hv[sbr]\.([A-Za-z0-9_-]{24,300})", MIXED),
    rule("Pulumi token", &["pul-"], r"pul-([0-9a-f]{40})", HEX),
    rule(
        "PlanetScale token",
        &["pscale_tkn_", "pscale_pw_", "pscale_oauth_"],
        r"pscale_(?:tkn|pw|oauth)_([A-Za-z0-9_.=-]{32,64})",
        MIXED,
    ),
    rule(
        "Doppler token",
        &["dp.pt.", "dp.st.", "dp.ct.", "dp.sa."],
        r"dp\.(?:pt|st|ct|sa)\.(?:[a-z0-9_-]{1,40}\.)?([A-Za-z0-9]{40,44})",
        MIXED,
    ),
    rule("Supabase token", &["sbp_", "sb_secret_"], r"(?:sbp_([0-9a-f]{40})|sb_secret_[A-Za-z0-9_-]{31,})", HEX),
    rule("Tailscale key", &["tskey-"], r"tskey-[a-z]{2,10}-([A-Za-z0-9]{8,20}-[A-Za-z0-9]{20,40})", MIXED),
    rule("1Password token", &["ops_eyJ"], r"ops_eyJ([A-Za-z0-9+/=_-]{250,2000})", MIXED),
    rule(
        "1Password secret key",
        &["A3-"],
        r"A3-([A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})-[A-Z0-9]{5}-[A-Z0-9]{5}-[A-Z0-9]{5})",
        MIXED,
    ),
    // Observability.
    rule(
        "Grafana token",
        &["glsa_", "glc_"],
        r"gl(?:sa_([A-Za-z0-9]{32}_[0-9a-fA-F]{8})|c_[A-Za-z0-9+/=]{32,400})",
        MIXED,
    ),
    rule("Sentry token", &["sntrys_", "sntryu_"], r"sntry(?:s_([A-Za-z0-9+/=_-]{60,400})|u_[0-9a-f]{64})", MIXED),
    rule("New Relic key", &["NRAK-", "NRII-"], r"NR(?:AK-([A-Z0-9]{27})|II-[A-Za-z0-9_-]{32})", MIXED),
    rule("Dynatrace token", &["dt0c01.", "dt0s01."], r"dt0[cs]01\.([A-Z0-9]{24}\.[A-Z0-9]{64})", MIXED),
    // Models.
    rule("Anthropic key", &["sk-ant-"], r"sk-ant-[a-z]{3,10}[0-9]{2}-([A-Za-z0-9_-]{80,200})", MIXED),
    rule("OpenRouter key", &["sk-or-v1-"], r"sk-or-v1-([0-9a-f]{64})", HEX),
    rule(
        "OpenAI key",
        &["sk-proj-", "sk-svcacct-", "sk-admin-"],
        r"sk-(?:proj|svcacct|admin)-([A-Za-z0-9_-]{40,250})",
        MIXED,
    ),
    rule(
        "OpenAI or DeepSeek key",
        &["sk-"],
        r"sk-([A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}|[A-Za-z0-9]{48}|[0-9a-f]{32})",
        MIXED,
    ),
    rule("Hugging Face token", &["hf_", "api_org_"], r"(?:hf_|api_org_)([A-Za-z]{34})", MIXED),
    rule("Groq key", &["gsk_"], r"gsk_([A-Za-z0-9]{52})", MIXED),
    rule("xAI key", &["xai-"], r"xai-([A-Za-z0-9]{80})", MIXED),
    rule("Replicate token", &["r8_"], r"r8_([A-Za-z0-9]{37})", MIXED),
    rule("Perplexity key", &["pplx-"], r"pplx-([A-Za-z0-9]{48})", MIXED),
    rule("Orchestra key", &["orc_"], r"orc_([A-Za-z0-9_-]{32,120})", MIXED),
    // Chat, mail, work.
    rule(
        "Slack token",
        &["xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xoxe-", "xoxe.xox"],
        r"xox(?:[bparse]|e\.xox[bp])-([A-Za-z0-9-]{24,300})",
        MIXED,
    ),
    rule("Slack app token", &["xapp-"], r"xapp-[0-9]-([A-Z0-9]{9,14}-[0-9]{10,16}-[a-f0-9]{64})", HEX),
    rule(
        "Slack webhook",
        &["hooks.slack.com/"],
        r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9]{8,14}/[A-Za-z0-9]{8,20}/[A-Za-z0-9]{20,40})",
        MIXED,
    ),
    rule(
        "Discord webhook",
        &["discord.com/api/webhooks/", "discordapp.com/api/webhooks/"],
        r"discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/([A-Za-z0-9_-]{60,80})",
        MIXED,
    ),
    Rule {
        kind: "Telegram bot token",
        anchors: &[":AA"],
        lead: 8,
        inside: true,
        pattern: r"[0-9]{8}:AA([A-Za-z0-9_-]{33})",
        entropy: MIXED,
    },
    rule(
        "Microsoft Teams webhook",
        &["webhook.office.com/webhookb2/"],
        r"webhook\.office\.com/webhookb2/([0-9a-f-]{36}@[0-9a-f-]{36}/IncomingWebhook/[0-9a-f]{32}/[0-9a-f-]{36})",
        HEX,
    ),
    rule("SendGrid key", &["SG."], r"SG\.([A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43})", MIXED),
    rule("Mailgun key", &["key-"], r"key-([0-9a-f]{32})", HEX),
    rule("Brevo key", &["xkeysib-"], r"xkeysib-([0-9a-f]{64}-[A-Za-z0-9]{16})", HEX),
    rule("Twilio key", &["SK"], r"SK([0-9a-f]{32})", HEX),
    rule("Linear key", &["lin_api_", "lin_oauth_"], r"lin_(?:api|oauth)_([A-Za-z0-9]{40,64})", MIXED),
    rule("Notion token", &["ntn_", "secret_"], r"(?:ntn_([A-Za-z0-9]{43,50})|secret_[A-Za-z0-9]{43})", MIXED),
    rule("Airtable token", &["pat"], r"pat([A-Za-z0-9]{14}\.[0-9a-f]{64})", HEX),
    rule("Figma token", &["figd_", "figo_"], r"fig[do]_([A-Za-z0-9_-]{36,60})", MIXED),
    // Money.
    rule("Stripe key", &["sk_live_", "rk_live_"], r"[sr]k_live_([A-Za-z0-9]{20,250})", MIXED),
    rule("Stripe webhook secret", &["whsec_"], r"whsec_([A-Za-z0-9+/=]{32,64})", MIXED),
    rule("Shopify token", &["shpat_", "shpca_", "shppa_", "shpss_"], r"shp(?:at|ca|pa|ss)_([0-9a-fA-F]{32})", HEX),
    rule(
        "Square token",
        &["EAAA", "sq0csp-", "sq0atp-"],
        r"(?:EAAA([A-Za-z0-9_-]{60})|sq0csp-[A-Za-z0-9_-]{43}|sq0atp-[A-Za-z0-9_-]{22})",
        MIXED,
    ),
    rule(
        "Braintree token",
        &["access_token$production$"],
        r"access_token\$production\$([a-z0-9]{16}\$[0-9a-f]{32})",
        HEX,
    ),
];
