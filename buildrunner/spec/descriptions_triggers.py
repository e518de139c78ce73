"""What the fields of triggers mean, in one sentence each."""

from __future__ import annotations

_EVENTS = {
    "pullRequest": "Fire for pull requests.",
    "push": "Fire for pushes.",
}

TRIGGERS: dict[str, dict[str, str]] = {
    "BuildTrigger": {
        "resourceName": "Full name of the trigger: project, location and id.",
        "id": "Unique id of the trigger.",
        "description": "What the trigger is for, for people.",
        "name": "Name of the trigger, unique in its project.",
        "tags": "Words by which triggers can be found again.",
        "triggerTemplate": "Fire for pushes to a Cloud Source Repository.",
        "github": "Fire for events of a repository on GitHub.",
        "pubsubConfig": "Fire for messages of a Pub/Sub topic.",
        "webhookConfig": "Fire when someone who knows a secret calls a URL.",
        "gitlabEnterpriseEventsConfig": "Fire for events of a project on a GitLab server.",
        "bitbucketServerTriggerConfig": "Fire for events of a repository on a Bitbucket server.",
        "cron": "Fire at set times.",
        "autodetect": "Build with the config or Dockerfile found in the repository.",
        "build": "The build itself, in place of a config file.",
        "filename": "Path of the config file in the repository.",
        "gitFileSource": "A config file in a repository that may be another.",
        "createTime": "When the trigger was made.",
        "disabled": "Never fire by itself.",
        "substitutions": "Values for the variables ($_NAME) of its builds.",
        "ignoredFiles": "Don't fire when all changed files match one of these globs.",
        "includedFiles": "Fire only when a changed file matches one of these globs.",
        "filter": "CEL expression over the event that must be true.",
        "sourceToBuild": "What to check out when the event names no repository.",
        "approvalConfig": "Whether its builds wait for approval.",
        "serviceAccount": "Account that its builds act as.",
        "repositoryEventConfig": "Fire for events of a connected repository.",
        "includeBuildLogs": "Whether the log is shown on the forge.",
        "eventType": "What kind of event fires the trigger.",
    },
    "PushFilter": {
        "branch": "Branches that fire, as a regular expression (RE2, searched).",
        "tag": "Tags that fire, as a regular expression (RE2, searched).",
        "invertRegex": "Fire for those that do not match.",
    },
    "PullRequestFilter": {
        "branch": "Target branches that fire, as a regular expression (RE2, searched).",
        "commentControl": "Whether someone must comment /gcbrun first.",
        "invertRegex": "Fire for those that do not match.",
    },
    "GitHubEventsConfig": {
        "enterpriseConfigResourceName": "Full name of a GitHub Enterprise connection.",
        "installationId": "Id of the GitHub App's installation.",
        "owner": "Owner of the repository.",
        "name": "Name of the repository.",
        **_EVENTS,
    },
    "GitLabEventsConfig": {
        "projectNamespace": "Path of the project: group/project.",
        "gitlabConfigResource": "Full name of the connection to the server.",
        "gitlabConfig": "The connection itself, as the service tells it.",
        **_EVENTS,
    },
    "BitbucketServerTriggerConfig": {
        "repoSlug": "Slug of the repository.",
        "projectKey": "Key of the project that the repository is in.",
        "bitbucketServerConfigResource": "Full name of the connection to the server.",
        "bitbucketServerConfig": "The connection itself, as the service tells it.",
        **_EVENTS,
    },
    "RepositoryEventConfig": {
        "repository": "Repository: projects/P/locations/L/connections/C/repositories/R.",
        "repositoryType": "Forge that the repository lives on.",
        **_EVENTS,
    },
    "PubsubConfig": {
        "subscription": "Subscription that the service made for the trigger.",
        "topic": "Topic to listen to: projects/P/topics/T.",
        "serviceAccountEmail": "Account that delivers the messages.",
        "state": "Whether messages can be received.",
    },
    "WebhookConfig": {
        "secret": "Secret version that callers must know: projects/P/secrets/S/versions/V.",
        "state": "Whether callers can be checked.",
    },
    "CronConfig": {
        "schedule": "When to fire, in cron's form: 0 3 * * *.",
        "timeZone": "Time zone of the schedule: Europe/Berlin.",
    },
    "GitFileSource": {
        "path": "Path of the config file in the repository.",
        "uri": "URL of the repository; that of the event when not set.",
        "repository": "Full name of a connected repository.",
        "repoType": "Forge that the repository lives on.",
        "revision": "Branch, tag, commit or ref; that of the event when not set.",
        "githubEnterpriseConfig": "Full name of a GitHub Enterprise connection.",
        "bitbucketServerConfig": "Full name of a Bitbucket Server connection.",
    },
    "GitRepoSource": {
        "uri": "URL of the repository.",
        "repository": "Full name of a connected repository.",
        "ref": "Branch or tag to check out; begins with refs/.",
        "repoType": "Forge that the repository lives on.",
        "githubEnterpriseConfig": "Full name of a GitHub Enterprise connection.",
        "bitbucketServerConfig": "Full name of a Bitbucket Server connection.",
    },
}
