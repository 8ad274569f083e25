"""Settings: one field per variable, every mistake named at once, no secret shown."""

from pathlib import Path

import pytest

from shared import terminal
from shared.config import PREFIX, Settings, SettingsError, load_settings, settings_table

SERVERS = {
    "DARKROOM_DATABASE_URL": "postgresql://darkroom:hunter2@localhost/darkroom",
    "DARKROOM_AMQP_URL": "amqp://darkroom:hunter2@localhost:5672/",
}


def settings(**more: str) -> Settings:
    return load_settings({**SERVERS, **more}, dotenv=None)


def refusal(**more: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(**more)
    return str(caught.value)


def test_two_addresses_are_all_that_must_be_set():
    assert settings().http_port == 8080
    said = ""
    try:
        load_settings({}, dotenv=None)
    except SettingsError as error:
        said = str(error)
    assert "DARKROOM_DATABASE_URL is not set" in said
    assert "DARKROOM_AMQP_URL is not set" in said


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_usual_postgresql_scheme_is_read_as_psycopg2(scheme):
    url = settings(DARKROOM_DATABASE_URL=f"{scheme}://u:p@h/d?sslmode=require").database_url.get_secret_value()
    assert url == "postgresql+psycopg2://u:p@h/d?sslmode=require"


def test_several_brokers_are_tried_in_the_order_they_are_named():
    brokers = settings(DARKROOM_AMQP_URL="amqps://a:5671/, amqp://b:5672/ ,").amqp_urls
    assert brokers == ["amqps://a:5671/", "amqp://b:5672/"]


@pytest.mark.parametrize("url", ["http://localhost", "amqp://a,redis://b", ","])
def test_an_address_that_is_no_broker_is_refused(url):
    assert "DARKROOM_AMQP_URL" in refusal(DARKROOM_AMQP_URL=url)


def test_a_misspelt_variable_stops_the_start_and_names_the_right_one():
    assert "DARKROOM_LEASE_SECOND is not a setting; did you mean DARKROOM_LEASE_SECONDS?" in refusal(
        DARKROOM_LEASE_SECOND="90"
    )


def test_all_mistakes_are_named_at_once():
    said = refusal(DARKROOM_HTTP_PORT="http", DARKROOM_LOG_LEVEL="loud", DARKROOM_QQQ="1", DARKROOM_PREFETCH_API="0")
    for name in ("HTTP_PORT", "LOG_LEVEL", "QQQ", "PREFETCH_API"):
        assert PREFIX + name in said
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", " "])
def test_a_duration_is_a_finite_number_in_its_bounds(text):
    assert "DARKROOM_LEASE_SECONDS" in refusal(DARKROOM_LEASE_SECONDS=text)


def test_an_empty_variable_counts_as_not_set():
    assert settings(DARKROOM_LEASE_SECONDS="").lease_seconds == settings().lease_seconds


def test_settings_that_contradict_each_other_are_refused():
    assert "RETRY_CAP_SECONDS" in refusal(DARKROOM_RETRY_FIRST_SECONDS="100", DARKROOM_RETRY_CAP_SECONDS="10")


def test_no_secret_is_printed_also_when_it_is_wrong():
    shown = repr(settings()) + str(settings())
    wrong = refusal(DARKROOM_DATABASE_URL="mysql://u:hunter2@h/d", DARKROOM_AMQP_URL="hunter2")
    assert "hunter2" not in shown + wrong


def test_a_refusal_carries_no_cause_that_would_print_secrets():
    with pytest.raises(SettingsError) as caught:
        settings(DARKROOM_DATABASE_URL="mysql://u:hunter2@h/d")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_environment_wins_over_the_local_file(tmp_path: Path):
    local = tmp_path / "env"
    local.write_text("# made by make up\nDARKROOM_HTTP_PORT=1\nDARKROOM_METRICS_PORT=2\nOTHER=x\n")
    both = load_settings({**SERVERS, "DARKROOM_HTTP_PORT": "3"}, dotenv=local)
    assert (both.http_port, both.metrics_port) == (3, 2)


def test_the_shell_a_test_runs_in_does_not_leak_into_its_settings(monkeypatch):
    monkeypatch.setenv("DARKROOM_HTTP_PORT", "1")
    assert settings().http_port == 8080


def test_settings_do_not_change_after_the_start():
    with pytest.raises(ValueError, match="frozen"):
        settings().http_port = 1


def test_folders_and_flags_are_read_from_text():
    read = settings(DARKROOM_INPUT_FOLDERS="/a, /b", DARKROOM_ALLOW_PRIVATE_INPUTS="true", DARKROOM_LOG_LEVEL="debug")
    assert read.input_folders == (Path("/a"), Path("/b"))
    assert read.allow_private_inputs
    assert read.log_level == "DEBUG"


def test_the_retry_policy_is_made_of_the_settings():
    policy = settings(DARKROOM_RETRY_MAX_ATTEMPTS="2", DARKROOM_RETRY_CAP_SECONDS="20").retry
    assert (policy.max_charged, policy.cap_seconds) == (2, 20)


def test_each_process_has_a_name_of_its_own():
    assert settings().instance
    assert settings(DARKROOM_INSTANCE="worker-7").instance == "worker-7"


def test_the_table_lists_each_setting_once_with_its_meaning():
    rows = settings_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [PREFIX + name.upper() for name in Settings.model_fields]
    assert all(len(row.split(" | ")) == 3 and not row.endswith("None |") for row in rows)


def test_every_duration_says_that_it_is_in_seconds():
    durations = [name for name, field in Settings.model_fields.items() if field.annotation is float]
    assert [name for name in durations if not name.endswith("_seconds")] == ["retry_factor"]
    assert len(durations) > 10


def test_tokens_may_be_several_so_that_they_can_be_changed_one_after_the_other():
    assert settings().http_token_values == []
    assert settings(DARKROOM_HTTP_TOKENS=" , ").http_token_values == []
    both = settings(DARKROOM_HTTP_TOKENS="0123456789abcdef, fedcba9876543210==")
    assert both.http_token_values == ["0123456789abcdef", "fedcba9876543210=="]
    assert "0123456789abcdef" not in repr(both)


def test_tokens_for_reading_stand_beside_others_and_are_none_of_them():
    read = settings(DARKROOM_HTTP_TOKENS="0123456789abcdef", DARKROOM_HTTP_READ_TOKENS="fedcba9876543210")
    assert read.http_read_token_values == ["fedcba9876543210"]
    assert "fedcba9876543210" not in repr(read)
    assert "nobody could place an order" in refusal(DARKROOM_HTTP_READ_TOKENS="fedcba9876543210")
    said = refusal(DARKROOM_HTTP_TOKENS="0123456789abcdef", DARKROOM_HTTP_READ_TOKENS="0123456789abcdef")
    assert "is one of DARKROOM_HTTP_TOKENS too" in said
    assert "0123456789abcdef" not in said


@pytest.mark.parametrize("token", ["hunter2", "hunter2hunter2hunter2 x", "pässwordpässword", "=" * 20])
def test_a_token_that_is_easy_to_guess_or_no_token_is_refused_and_not_shown(token):
    said = refusal(DARKROOM_HTTP_TOKENS=f"0123456789abcdef,{token}")
    assert "DARKROOM_HTTP_TOKENS each token needs 16 characters or more" in said
    assert token not in said
    assert "0123456789abcdef" not in said


def test_a_secret_may_stand_in_a_file(tmp_path: Path):
    secret = tmp_path / "amqp_url"
    secret.write_text("amqp://darkroom:hunter2@broker/\n")
    environ = {"DARKROOM_DATABASE_URL": SERVERS["DARKROOM_DATABASE_URL"], "DARKROOM_AMQP_URL_FILE": str(secret)}
    assert load_settings(environ, dotenv=None).amqp_urls == ["amqp://darkroom:hunter2@broker/"]


def test_a_secret_given_twice_or_not_readable_is_refused(tmp_path: Path):
    said = refusal(DARKROOM_AMQP_URL_FILE="/x", DARKROOM_DATABASE_URL="", DARKROOM_DATABASE_URL_FILE=str(tmp_path))
    assert "DARKROOM_AMQP_URL and DARKROOM_AMQP_URL_FILE are both set" in said
    assert "DARKROOM_DATABASE_URL_FILE cannot be read" in said


def test_a_secret_in_a_file_wins_over_the_local_file(tmp_path: Path):
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in SERVERS.items()))
    (tmp_path / "url").write_text("amqp://elsewhere/")
    read = load_settings({"DARKROOM_AMQP_URL_FILE": str(tmp_path / "url")}, dotenv=tmp_path / "env")
    assert read.amqp_urls == ["amqp://elsewhere/"]


def test_only_secrets_are_read_from_files():
    assert "DARKROOM_HTTP_PORT_FILE is not a setting" in refusal(DARKROOM_HTTP_PORT_FILE="/x")


def test_a_command_that_needs_no_broker_does_not_read_its_secret(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", SERVERS["DARKROOM_DATABASE_URL"])
    monkeypatch.setenv("DARKROOM_AMQP_URL_FILE", str(tmp_path / "absent"))
    assert "hunter2" in terminal.settings().database_url.get_secret_value()
