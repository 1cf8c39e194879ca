//! What each keyword of a schema asks, what is refused at load, and that violations repeat no value.

use serde_json::json;

use super::*;

fn violations(schema: &Json, x: &Json, path: &str) -> Vec<Violation> {
    let schema = Schema::compile(&json!({"properties": {"x": schema}}), "$").unwrap();
    let text = json!({"x": x}).to_string();
    let event = Value::parse(text.as_bytes()).unwrap();
    let found = schema.check(event.as_object().unwrap(), path, Look::UntilFull);
    found.violations
}

fn broken(schema: &Json, value: &Json) -> Vec<String> {
    let violations = violations(schema, value, "$");
    violations.iter().map(Violation::short).collect()
}

#[test]
fn each_keyword_is_checked() {
    let cases = [
        (json!({"type": "string"}), json!("a"), json!(1), "type"),
        (
            json!({"type": ["string", "null"]}),
            json!(null),
            json!(true),
            "type",
        ),
        (json!({"type": "integer"}), json!(2.0), json!(2.5), "type"),
        (json!({"type": "number"}), json!(3), json!("3"), "type"),
        (json!({"type": "object"}), json!({}), json!([]), "type"),
        (json!({"enum": ["a", 1]}), json!(1.0), json!("b"), "enum"),
        (
            json!({"const": {"a": 1}}),
            json!({"a": 1}),
            json!({"a": 2}),
            "const",
        ),
        (
            json!({"enum": [{"a": [1, null]}]}),
            json!({"a": [1.0, null]}),
            json!({"a": [1.0]}),
            "enum",
        ),
        (json!({"minimum": 1}), json!(1), json!(0.5), "minimum"),
        (json!({"maximum": 5}), json!(5), json!(6), "maximum"),
        (
            json!({"exclusiveMinimum": 0}),
            json!(0.1),
            json!(0),
            "exclusiveMinimum",
        ),
        (
            json!({"exclusiveMaximum": 5}),
            json!(4),
            json!(5.0),
            "exclusiveMaximum",
        ),
        (
            json!({"maximum": 9_007_199_254_740_993_i64}),
            json!(9_007_199_254_740_993_i64),
            json!(9_007_199_254_740_994_i64),
            "maximum",
        ),
        (
            json!({"minLength": 2}),
            json!("äö"),
            json!("ä"),
            "minLength",
        ),
        (
            json!({"maxLength": 2}),
            json!("äö"),
            json!("äöü"),
            "maxLength",
        ),
        (json!({"minItems": 1}), json!([1]), json!([]), "minItems"),
        (
            json!({"maxItems": 1}),
            json!([1]),
            json!([1, 2]),
            "maxItems",
        ),
        (
            json!({"format": "date-time"}),
            json!("2026-11-20T10:00:00Z"),
            json!("tomorrow"),
            "format",
        ),
    ];
    for (schema, good, bad, keyword) in cases {
        assert_eq!(broken(&schema, &good), [""; 0], "{schema} {good}");
        let expected = [format!("$.x: {keyword}")];
        assert_eq!(broken(&schema, &bad), expected, "{schema} {bad}");
    }
}

#[test]
fn enum_and_const_hold_side_by_side() {
    let schema = json!({"enum": ["a", "b"], "const": "b"});
    let cases: [(&str, &[&str]); 3] = [
        ("b", &[]),
        ("a", &["$.x: const"]),
        ("c", &["$.x: const", "$.x: enum"]),
    ];
    for (value, expected) in cases {
        assert_eq!(broken(&schema, &json!(value)), expected, "{value}");
    }
    // No value is both.
    let schema = json!({"enum": ["a"], "const": "b"});
    assert_eq!(broken(&schema, &json!("a")), ["$.x: const"]);
    assert_eq!(broken(&schema, &json!("b")), ["$.x: enum"]);
}

#[test]
fn keywords_of_another_type_do_not_speak() {
    let schema =
        json!({"minimum": 5, "minLength": 5, "minItems": 5, "required": ["a"], "format": "uuid"});
    assert_eq!(broken(&schema, &json!(null)), [""; 0]);
    assert_eq!(broken(&schema, &json!({})), ["$.x.a: required"]);
}

#[test]
fn nested_values_are_named_by_their_place() {
    let schema = json!({
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}},
            "plan": {"type": "object", "required": ["id"], "additionalProperties": false,
                     "properties": {"id": {"type": "string"}}},
        },
        "additionalProperties": {"type": "integer"},
    });
    let value = json!({"tags": ["a", 1], "plan": {"secret": 1}, "other": "x", "count": 3});
    assert_eq!(
        broken(&schema, &value),
        [
            "$.x.*: type",
            "$.x.plan.id: required",
            "$.x.plan: additionalProperties",
            "$.x.tags[]: type"
        ]
    );
}

#[test]
fn a_violation_says_what_is_expected_and_no_value() {
    let schema = json!({"type": ["integer", "null"]});
    let violations = violations(&schema, &json!("secret"), "$.properties");
    assert_eq!(
        violations[0].to_string(),
        "$.properties.x: type: null or integer expected, string found"
    );
}

#[test]
fn what_is_noted_of_one_event_is_bounded() {
    let schema = json!({"items": {"type": "string"}});
    let value = Json::from(vec![1; 1000]);
    assert_eq!(broken(&schema, &value).len(), VIOLATIONS_MAX);
}

/// The properties at fault of `event`, and the violations that are noted.
fn at_fault(schema: &Json, event: &Json) -> (Vec<String>, Vec<String>) {
    let schema = Schema::compile(schema, "$").unwrap();
    let text = event.to_string();
    let event = Value::parse(text.as_bytes()).unwrap();
    let found = schema.check(event.as_object().unwrap(), "$", Look::AtAll);
    let noted = found.violations.iter().map(Violation::short).collect();
    (found.at_fault, noted)
}

#[test]
fn a_property_is_at_fault_for_whatever_is_wrong_in_it() {
    let integer = json!({"type": "integer"});
    let deep = json!({"properties": {"a": {"items": {"properties": {"b": integer}}}}});
    let cases = [
        (
            json!({"properties": {"x": integer}}),
            json!({"x": 1, "y": "z"}),
            vec![],
        ),
        (
            json!({"properties": {"x": integer}}),
            json!({"x": "1", "y": "z"}),
            vec!["x"],
        ),
        (
            deep,
            json!({"a": [{"b": 1}, {"b": "1"}], "b": "1"}),
            vec!["a"],
        ),
        (
            json!({"properties": {"a": {"required": ["b"]}}}),
            json!({"a": {"c": 1}}),
            vec!["a"],
        ),
        (
            json!({"properties": {"a": {"additionalProperties": false}}}),
            json!({"a": {"c": 1}}),
            vec!["a"],
        ),
        // What is missing is in no property.
        (json!({"required": ["x"]}), json!({"y": 1}), vec![]),
        (
            json!({"properties": {"x": integer}, "additionalProperties": false}),
            json!({"a": 1, "x": 2, "z": null}),
            vec!["a", "z"],
        ),
        (
            json!({"additionalProperties": integer}),
            json!({"a": 1, "b": "2", "c": 3}),
            vec!["b"],
        ),
    ];
    for (schema, event, expected) in cases {
        assert_eq!(at_fault(&schema, &event).0, expected, "{schema} {event}");
    }
}

#[test]
fn no_property_at_fault_is_passed_over_however_many_there_are() {
    let names: Vec<String> = (0..100).map(|n| format!("p{n:03}")).collect();
    let list = |value: Json| names.iter().map(move |it| (it.clone(), value.clone()));
    let schema = json!({
        "properties": Json::Object(list(json!({"items": {"type": "string"}})).collect()),
        "additionalProperties": false,
    });
    let event: Map<String, Json> = list(json!([1, 2, 3])).collect();
    let mut event = Json::Object(event);
    event["unplanned"] = json!(1);
    let (at_fault, noted) = at_fault(&schema, &event);
    assert_eq!(at_fault.len(), 101);
    assert_eq!(at_fault[99..], ["p099", "unplanned"]);
    assert_eq!(noted.len(), VIOLATIONS_MAX);
}

#[test]
fn a_schema_that_could_not_be_checked_whole_is_refused_by_its_path() {
    let cases = [
        (json!({"requierd": ["a"]}), "$.requierd"),
        (
            json!({"properties": {"a": {"pattern": "x"}}}),
            "$.properties.a.pattern",
        ),
        (
            json!({"properties": {"a": {"$ref": "https://a.example"}}}),
            "$.properties.a.$ref",
        ),
        (json!({"type": "text"}), "$.type"),
        (json!({"type": []}), "$.type"),
        (json!({"enum": []}), "$.enum"),
        (json!({"minimum": "1"}), "$.minimum"),
        (json!({"maxLength": -1}), "$.maxLength"),
        (json!({"required": "a"}), "$.required"),
        (json!({"required": [1]}), "$.required"),
        (json!({"items": {"format": "email"}}), "$.items.format"),
        (json!({"additionalProperties": 1}), "$.additionalProperties"),
        (json!([]), "$"),
    ];
    for (schema, path) in cases {
        let error = Schema::compile(&schema, "$").unwrap_err();
        assert_eq!(error.path, path, "{schema}");
    }
    let deep = (0..40).fold(json!({}), |inner, _| json!({ "items": inner }));
    let error = Schema::compile(&deep, "$").unwrap_err();
    assert!(error.reason.contains("deeper"), "{error}");
}

#[test]
fn what_would_not_be_checked_at_the_top_of_an_event_is_refused() {
    let refused = [
        (json!({"type": "string"}), "$.type", "must allow `object`"),
        (
            json!({"type": ["array", "null"]}),
            "$.type",
            "must allow `object`",
        ),
        (json!({"enum": [{}]}), "$.enum", "would not be checked"),
        (
            json!({"const": {"a": 1}}),
            "$.const",
            "would not be checked",
        ),
        (json!({"minimum": 1}), "$.minimum", "would not be checked"),
        (
            json!({"maxLength": 9}),
            "$.maxLength",
            "would not be checked",
        ),
        (json!({"minItems": 1}), "$.minItems", "would not be checked"),
        (
            json!({"format": "uuid"}),
            "$.format",
            "would not be checked",
        ),
        (json!({"items": {}}), "$.items", "would not be checked"),
        (json!({"requierd": ["a"]}), "$.requierd", "is not known"),
    ];
    for (schema, path, reason) in refused {
        let error = Schema::compile_top(&schema, "$").unwrap_err();
        assert_eq!(error.path, path, "{schema}");
        assert!(error.reason.contains(reason), "{error}");
    }
    let taken = [
        json!(true),
        json!({}),
        json!({"type": ["object", "null"], "title": "A", "$comment": "b"}),
        json!({"type": "object", "properties": {"a": {"enum": [1], "minimum": 1}},
               "required": ["a"], "additionalProperties": {"maxLength": 9}}),
    ];
    for schema in taken {
        assert!(Schema::compile_top(&schema, "$").is_ok(), "{schema}");
    }
}
