"""Schema of the official Airflow chart for the keys that our values use.

It covers names, types and enumerations. It was read from the chart's published
``values.schema.json`` and ``values.yaml`` (github.com/apache/airflow, folder ``chart``, Apache
License 2.0) and its parameters reference for 1.22.0. It contains none of their text. As in the
chart, an unknown key is refused. To use a further key, look it up and add it here.
"""

from typing import Any

TEXT, FLAG, COUNT, FREE = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}, {"type": "object"}
NOTHING_OR_TEXT = {"type": ["string", "null"]}
TEXTS = {"type": "array", "items": TEXT}


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def each(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


# Variables have name and value. A few sections also accept valueFrom, which our values do not use.
VARIABLES = each(closed("name", "value", name=TEXT, value=TEXT))
VOLUMES = each({"type": "object", "required": ["name"]})
MOUNTS = each({"type": "object", "required": ["name", "mountPath"]})
RESOURCES = closed(limits=FREE, requests=FREE)
PROBE = closed(
    initialDelaySeconds=COUNT,
    timeoutSeconds=COUNT,
    failureThreshold=COUNT,
    periodSeconds=COUNT,
    command={"type": ["array", "null"]},
    scheme=TEXT,
)
BUDGET = closed(enabled=FLAG, config=closed(maxUnavailable=COUNT, minAvailable=COUNT))
ACCOUNT = closed(create=FLAG, name=NOTHING_OR_TEXT, annotations=FREE, automountServiceAccountToken=FLAG)
GROOMER = closed(
    enabled=FLAG,
    command={"type": ["array", "null"]},
    args=TEXTS,
    retentionDays=COUNT,
    frequencyMinutes=COUNT,
    resources=RESOURCES,
    env=VARIABLES,
)
KEDA = closed(enabled=FLAG, minReplicaCount=COUNT, maxReplicaCount=COUNT, pollingInterval=COUNT, cooldownPeriod=COUNT)
SWITCH = closed(enabled=FLAG)
JOB = closed(
    enabled=FLAG,
    args=TEXTS,
    command={"type": ["array", "null"]},
    env=VARIABLES,
    extraVolumes=VOLUMES,
    extraVolumeMounts=MOUNTS,
    resources=RESOURCES,
    useHelmHooks=FLAG,
    applyCustomEnv=FLAG,
    serviceAccount=ACCOUNT,
    ttlSecondsAfterFinished=COUNT,
    jobAnnotations=FREE,
)
PART: dict[str, Any] = {
    "replicas": COUNT,
    "args": TEXTS,
    "env": VARIABLES,
    "podDisruptionBudget": BUDGET,
    "resources": RESOURCES,
    "serviceAccount": ACCOUNT,
}
# Sections and options of airflow.cfg. They are strings, because they are templates.
OPTIONS = {
    "type": "object",
    "additionalProperties": {"type": "object", "additionalProperties": {"type": ["string", "integer", "null"]}},
}

SCHEMA = closed(
    airflowVersion=TEXT,
    airflowHome=TEXT,
    airflowLocalSettings=NOTHING_OR_TEXT,
    apiSecretKeySecretName=NOTHING_OR_TEXT,
    apiServer=closed(**PART, startupProbe=PROBE, livenessProbe=PROBE, readinessProbe=PROBE),
    config=OPTIONS,
    createUserJob=JOB,
    dagProcessor=closed(
        **PART,
        dagBundleConfigList=each(closed("name", "classpath", name=TEXT, classpath=TEXT, kwargs=FREE)),
        logGroomerSidecar=GROOMER,
    ),
    dags=closed(persistence=SWITCH, gitSync=SWITCH),
    data=closed(metadataSecretName=NOTHING_OR_TEXT),
    env=VARIABLES,
    executor={
        "type": "string",
        "pattern": (
            "^(LocalExecutor|CeleryExecutor|KubernetesExecutor)(,(LocalExecutor|CeleryExecutor|KubernetesExecutor))*$"
        ),
    },
    # A template, so a string with YAML in it.
    extraEnvFrom=NOTHING_OR_TEXT,
    fernetKeySecretName=NOTHING_OR_TEXT,
    flower=SWITCH,
    gid=COUNT,
    images=closed(
        airflow=closed(
            repository=NOTHING_OR_TEXT,
            tag=NOTHING_OR_TEXT,
            digest=NOTHING_OR_TEXT,
            pullPolicy={"enum": ["Always", "Never", "IfNotPresent"]},
        ),
        migrationsWaitTimeout=COUNT,
        useDefaultImageForMigration=FLAG,
    ),
    ingress=closed(
        apiServer=closed(
            enabled=FLAG,
            annotations=FREE,
            ingressClassName=TEXT,
            path=TEXT,
            pathType=TEXT,
            hosts=each(closed("name", name=TEXT, tls=closed(enabled=FLAG, secretName=TEXT))),
        )
    ),
    jwtSecretName=NOTHING_OR_TEXT,
    logs=closed(persistence=SWITCH),
    migrateDatabaseJob=JOB,
    pgbouncer=SWITCH,
    # A template of a pod, so a string.
    podTemplate=NOTHING_OR_TEXT,
    postgresql=SWITCH,
    redis=SWITCH,
    scheduler=closed(**PART, startupProbe=PROBE, livenessProbe=PROBE, logGroomerSidecar=GROOMER),
    securityContexts=closed(pod=FREE, containers=FREE),
    statsd=SWITCH,
    triggerer=closed(**PART, enabled=FLAG, persistence=SWITCH, keda=KEDA, logGroomerSidecar=GROOMER),
    uid=COUNT,
    volumeMounts=MOUNTS,
    volumes=VOLUMES,
    workers=closed(keda=KEDA, resources=RESOURCES, serviceAccount=ACCOUNT),
)
