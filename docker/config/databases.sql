-- Run once by the PostgreSQL image, on an empty volume: two owners and three databases, without access to each other's.
-- psql reads the passwords from the secrets' files, so they appear in no argument or environment variable; with the next
-- two lines they appear in no log either, not even after a failure.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';

\set evosearch_password `cat /run/secrets/evosearch_db_password`
\set mlflow_password `cat /run/secrets/mlflow_db_password`

CREATE ROLE evosearch LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'evosearch_password';
CREATE ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'mlflow_password';

CREATE DATABASE evosearch OWNER evosearch; -- ledgers
CREATE DATABASE mlflow OWNER mlflow;       -- runs, models
CREATE DATABASE mlflow_auth OWNER mlflow;  -- MLflow's accounts

REVOKE ALL ON DATABASE evosearch, mlflow, mlflow_auth, postgres, template1 FROM PUBLIC;
