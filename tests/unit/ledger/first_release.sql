BEGIN TRANSACTION;
CREATE TABLE clocks (
	project VARCHAR(40) NOT NULL, 
	now VARCHAR(20) NOT NULL, 
	PRIMARY KEY (project)
);
INSERT INTO "clocks" VALUES('p','2013-01-01T00:00:00Z');
CREATE TABLE decisions (
	project VARCHAR(40) NOT NULL, 
	what VARCHAR(40) NOT NULL, 
	subject VARCHAR(100) NOT NULL, 
	verdict VARCHAR(40) NOT NULL, 
	reasons JSON NOT NULL, 
	cutoff VARCHAR(20) NOT NULL, 
	recorded_at VARCHAR(20) NOT NULL, 
	PRIMARY KEY (project, what, subject)
);
INSERT INTO "decisions" VALUES('p','monitor','x','drifting','[]','2013-01-01T00:00:00Z','2026-11-21T16:26:56Z');
CREATE TABLE drift_episodes (
	id VARCHAR(16) NOT NULL, 
	project VARCHAR(40) NOT NULL, 
	opened VARCHAR(20) NOT NULL, 
	closed VARCHAR(20), 
	evidence JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "drift_episodes" VALUES('05a3db0d86bc84e2','p','2013-01-01T00:00:00Z',NULL,'{}');
CREATE TABLE ingested_files (
	project VARCHAR(40) NOT NULL, 
	source VARCHAR(40) NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	file VARCHAR(400) NOT NULL, 
	status VARCHAR(20) NOT NULL, 
	counts JSON NOT NULL, 
	reasons JSON NOT NULL, 
	cutoff VARCHAR(20) NOT NULL, 
	recorded_at VARCHAR(20) NOT NULL, 
	PRIMARY KEY (project, source, sha256)
);
INSERT INTO "ingested_files" VALUES('p','s','xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx','a.csv','ingested','{"rows": 1}','[]','2013-01-01T00:00:00Z','2026-11-21T16:26:56Z');
CREATE TABLE retrain_requests (
	id VARCHAR(16) NOT NULL, 
	project VARCHAR(40) NOT NULL, 
	cutoff VARCHAR(20) NOT NULL, 
	reason VARCHAR(40) NOT NULL, 
	asked_by VARCHAR(100) NOT NULL, 
	episode VARCHAR(16), 
	parameters JSON NOT NULL, 
	state VARCHAR(20) NOT NULL, 
	dag_run VARCHAR(250), 
	outcome JSON NOT NULL, 
	recorded_at VARCHAR(20) NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "retrain_requests" VALUES('r1','p','2013-01-01T00:00:00Z','drift','monitor','e1','{}','claimed','run','{}','2026-01-01T00:00:00Z');
CREATE TABLE stages (
	project VARCHAR(40) NOT NULL, 
	stage VARCHAR(40) NOT NULL, 
	cutoff VARCHAR(20) NOT NULL, 
	dag_run VARCHAR(250) NOT NULL, 
	summary JSON NOT NULL, 
	recorded_at VARCHAR(20) NOT NULL, 
	PRIMARY KEY (project, stage, cutoff)
);
INSERT INTO "stages" VALUES('p','ingest','2013-01-01T00:00:00Z','r','{}','2026-11-21T16:26:56Z');
CREATE UNIQUE INDEX one_open_episode ON drift_episodes (project) WHERE closed IS NULL;
COMMIT;
