"""Tokens: what a person pastes is what was printed, or one clear error; keys stay with their owner."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from tsugi_cli.launch.invitation import Invitation
from tsugi_cli.launch.keys import TOKEN_FILE, keygen, show_tokens, token_for
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ConfigError, SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role, RunKeys

ADDRESS = "tcp://node-0:51820"


@pytest.fixture(scope="module")
def keys():
    return RunKeys.generate()


@pytest.mark.parametrize("role", [Role.MEMBER, Role.OBSERVER])
def test_token_carries_one_role_and_nothing_more(keys, role):
    read, found = token.read(token.write(keys, role), ADDRESS)
    assert found is role
    assert keys.roles()[read.member_public] is role
    assert read.hub_public == keys.hub_public
    assert read.hub_secret == ""
    assert read.address == ADDRESS


def test_the_owners_key_is_in_no_token_and_no_file_of_a_joiner(keys):
    with pytest.raises(SidebandError, match="there is no owner's token"):
        token.write(keys, Role.OWNER)
    read, _ = token.read(token.write(keys, Role.MEMBER), ADDRESS)
    assert (read.owner_seed, read.as_owner()) == ("", None)
    assert keys.roles()[keys.as_owner().member_public] is Role.OWNER


def test_a_key_file_of_an_earlier_version_still_loads_and_its_hub_draws_an_owners_key(keys, tmp_path):
    path = tmp_path / "keys.json"
    sideband_keys.save(keys, path)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "owner_seed"}))
    old = sideband_keys.load(path)
    assert old.as_owner() is None
    assert set(old.roles().values()) == {Role.MEMBER, Role.OBSERVER}
    assert Role.OWNER in old.owned().roles().values()
    assert keys.owned() == keys


def test_token_fits_into_a_line_of_a_terminal(keys):
    assert len(token.write(keys, Role.MEMBER)) < 80


def test_what_pasting_adds_does_not_matter(keys):
    text = token.write(keys, Role.MEMBER)
    assert token.read(f"  {text[:40]}\n{text[40:]}\r\n", ADDRESS) == token.read(text, ADDRESS)


def test_every_mistyped_character_is_noticed(keys):
    """The last one carries two spare bits, so it is left out."""
    text = token.write(keys, Role.MEMBER)
    for place in range(len(token.PREFIX), len(text) - 1):
        wrong = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        with pytest.raises(ConfigError, match="mistyped"):
            token.read(wrong, ADDRESS)


@pytest.mark.parametrize("cut", [0, 7, 8, 20, 77])
def test_a_cut_token_is_one_clear_error_without_the_token(keys, cut):
    text = token.write(keys, Role.MEMBER)
    with pytest.raises(ConfigError, match="token: ") as found:
        token.read(text[:cut], ADDRESS)
    assert len(found.value.problems) == 1
    assert cut < 20 or text[8:cut] not in str(found.value)


def test_another_version_is_named(keys):
    with pytest.raises(ConfigError, match="tsugi3- is not a token of this version"):
        token.read("tsugi3-" + token.write(keys, Role.MEMBER)[7:], ADDRESS)


@pytest.mark.parametrize("address", ["", "node-0", "node-0:51820", "udp://node-0:1", "tcp://node-0", "tcp://a:b"])
def test_an_address_is_checked_first(keys, address):
    with pytest.raises(ConfigError, match="such as tcp://host:51820"):
        token.read(token.write(keys, Role.MEMBER), address)


def test_members_keys_make_no_observers_token(keys):
    read, _ = token.read(token.write(keys, Role.OBSERVER), ADDRESS)
    with pytest.raises(SidebandError, match="make no member token"):
        token.write(read, Role.MEMBER)


def test_keygen_writes_for_the_owner_alone_and_never_over_a_file(tmp_path):
    path, out = tmp_path / "keys.json", io.StringIO()
    keygen(path, Answer(out))
    assert path.stat().st_mode & 0o777 == 0o600
    keys = sideband_keys.load(path)
    assert token.write(keys, Role.MEMBER) in out.getvalue()
    assert token.write(keys, Role.OBSERVER) in out.getvalue()
    assert keys.hub_secret not in out.getvalue()
    assert keys.owner_seed
    assert keys.owner_seed not in out.getvalue()
    with pytest.raises(ConfigError, match="never overwritten"):
        keygen(path, Answer(out))
    assert sideband_keys.load(path) == keys


def test_token_comes_from_stdin_or_a_file_rather_than_the_command_line(keys, tmp_path, monkeypatch):
    text = token.write(keys, Role.OBSERVER)
    assert token_for(ADDRESS, "-", io.StringIO(text + "\n")).strip() == text
    (tmp_path / "token").write_text(text)
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
    assert token_for(ADDRESS, None, io.StringIO()) == text
    assert token_for(None, None, io.StringIO()) is None, "a run of this machine needs none"
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="cannot read the token"):
        token_for(ADDRESS, None, io.StringIO())


@pytest.fixture
def listening(keys):
    """Keys of a hub that listens."""
    return replace(keys, address=ADDRESS)


def test_one_line_holds_the_address_too_and_one_that_is_named_comes_before_it(listening):
    text = token.write(listening, Role.MEMBER, addressed=True)
    assert text.startswith(token.ADDRESSED)
    read, role = token.read(text)
    assert (read.address, role, read.hub_public) == (ADDRESS, Role.MEMBER, listening.hub_public)
    assert token.read(text, "tcp://tunnel:7")[0].address == "tcp://tunnel:7"
    assert read.member_secret == token.read(token.write(listening, Role.MEMBER), ADDRESS)[0].member_secret
    invited = Invitation.read(text, None, False, io.StringIO("nobody is asked"))
    assert invited.keys == read


def test_every_mistyped_character_of_it_is_noticed_and_none_is_shown(listening):
    text = token.write(listening, Role.MEMBER, addressed=True)
    for place in range(len(token.ADDRESSED), len(text) - 1):
        wrong = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        with pytest.raises(ConfigError, match="mistyped") as found:
            Invitation.read(wrong, None, False, io.StringIO())
        assert text[10:20] not in str(found.value)


def test_a_token_without_an_address_in_its_place_says_what_is_missing(keys, listening):
    with pytest.raises(ConfigError, match="does not say where the hub is"):
        Invitation.read(token.write(keys, Role.MEMBER), None, False, io.StringIO())
    with pytest.raises(SidebandError, match="where the hub listens"):
        token.write(keys, Role.MEMBER, addressed=True)
    text = token.write(listening, Role.MEMBER, addressed=True)
    for given, insecure in (("-", False), (None, True)):
        with pytest.raises(ConfigError, match="in the place of the address") as found:
            Invitation.read(text, given, insecure, io.StringIO())
        assert text not in str(found.value)


def test_a_role_s_token_is_printed_alone(listening, tmp_path):
    paths, out = RunPaths(tmp_path), io.StringIO()
    paths.keys.parent.mkdir()
    sideband_keys.save(listening, paths.keys)
    show_tokens(tmp_path, Answer(out), "observer")
    assert out.getvalue() == token.write(listening, Role.OBSERVER, addressed=True) + "\n"
    lines = io.StringIO()
    show_tokens(tmp_path, Answer(out, lines))
    assert set(json.loads(lines.getvalue())) == {"member", "observer"}
    with pytest.raises(ConfigError, match="--role owner: allowed are member, observer"):
        show_tokens(tmp_path, Answer(out), "owner")
