-- Run once by the PostgreSQL image, on an empty volume: creates two roles and three databases; neither role can access the
-- other's databases. psql reads the passwords from the secrets' files, so they are not in arguments or environment
-- variables; due to the next two lines they are not logged either, even if a statement fails.
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
