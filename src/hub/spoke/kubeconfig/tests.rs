use serde_json::json;

use super::*;

fn said(user: &str, cluster: &str) -> Result<(), String> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://192.0.2.1:6443'{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(config(Kubeconfig::from_yaml(&text).unwrap())).map(drop)
}

#[test]
fn a_kubeconfig_runs_nothing_and_reads_nothing_of_the_hubs_own() {
    assert_eq!(said("token: abc", ""), Ok(()));
    for (user, cluster, word) in [
        ("exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true}", "", "`exec`"),
        ("auth-provider: {name: oidc, config: {}}", "", "`auth-provider`"),
        ("tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token", "", "`tokenFile`"),
        ("client-certificate: /etc/passwd", "", "`client-certificate`"),
        ("client-key: /etc/shadow", "", "`client-key`"),
        ("token: abc", ", certificate-authority: /etc/passwd", "`certificate-authority`"),
        ("token: abc", ", proxy-url: 'http://192.0.2.2:3128'", "`proxy-url`"),
    ] {
        let why = said(user, cluster).unwrap_err();
        assert!(why.contains(word), "{user} {cluster}: {why}");
    }
}

fn job(conditions: &Value) -> JobObject {
    serde_json::from_value(json!({"metadata": {"name": "j", "uid": "1"}, "spec": {}, "status": {"active": 1, "conditions": conditions}}))
        .unwrap()
}

#[test]
fn a_job_is_over_by_its_last_condition_alone() {
    assert_eq!(end(&serde_json::from_value(json!({"metadata": {}})).unwrap()), JobEnd::Running);
    let target = json!({"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"});
    assert_eq!(end(&job(&json!([target]))), JobEnd::Running);
    let failed = json!({"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"});
    let (reason, message) = ("DeadlineExceeded".to_owned(), "too long".to_owned());
    assert_eq!(end(&job(&json!([target, failed]))), JobEnd::Failed { reason, message });
    assert_eq!(end(&job(&json!([{"type": "SuccessCriteriaMet", "status": "True"}]))), JobEnd::Running);
    assert_eq!(end(&job(&json!([{"type": "Complete", "status": "True"}]))), JobEnd::Complete);
    assert_eq!(end(&job(&json!([{"type": "Complete", "status": "False"}]))), JobEnd::Running);
}

fn pod(status: &Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status})).unwrap()
}

#[test]
fn a_pod_says_how_it_ended_or_what_it_waits_for() {
    let of =
        |state: Value| heard(&pod(&json!({"containerStatuses": [{"name": "other", "state": {}}, {"name": CONTAINER, "state": state}]})));
    let pair = |said: &str, waits: &str| (said.to_owned(), waits.to_owned());
    assert_eq!(of(json!({"terminated": {"exitCode": 65, "reason": "Error", "message": "damaged"}})), pair("damaged", ""));
    let lost = json!({"terminated": {"exitCode": 255, "reason": "Unknown"}});
    assert_eq!(of(lost), pair("its container exited with 255 (Unknown)", ""));
    assert_eq!(of(json!({"terminated": {"exitCode": 0, "reason": "Completed"}})), pair("", ""));
    assert_eq!(of(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})), pair("", ""));
    assert_eq!(of(json!({"waiting": {"reason": "ContainerCreating"}})), pair("", ""));
    let pull = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
    assert_eq!(of(pull), pair("", "ImagePullBackOff: no such image"));
    let away = pod(&json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}));
    assert_eq!(heard(&away), pair("The node was low on resource: memory.", ""));
    let unscheduled =
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]});
    assert_eq!(heard(&pod(&unscheduled)), pair("", "Unschedulable: 0/1 nodes"));
}
