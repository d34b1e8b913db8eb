"""Runs last: a kernel that no test launches is one that no test can find a fault in."""

from tests.cuda.emulator import device


def test_every_instance_of_every_kernel_was_launched() -> None:
    launches = device.launches()
    assert len(launches) > 200
    never = sorted(name for name, count in launches.items() if count == 0)
    assert not never, f"{len(never)} of {len(launches)} without a case:\n" + "\n".join(never)
