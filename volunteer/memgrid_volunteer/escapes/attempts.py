"""The escapes: each function raises OSError when it is refused, and returns when it got through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memgrid_volunteer.escapes import files, kernel, network, processes, resources
from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.kinds.job import Job

Make = Callable[[Targets, Job], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way out: what it is called in a table, and the function that takes it."""

    title: str
    make: Make


def _attempts() -> Mapping[str, Attempt]:
    ways: dict[str, Make] = {
        "connect by TCP": network.connect_tcp,
        "connect by sending": network.send_by_fast_open,
        "listen on a port": network.listen_tcp,
        "send by UDP": network.send_udp,
        "ask a name server": network.ask_nameserver,
        "connect to a unix socket": network.connect_unix,
        "connect to an abstract socket": network.connect_abstract,
        "send to a unix socket": network.send_unix,
        "send past a pair of sockets": network.send_past_a_pair,
        "raw packets": network.open_packets,
        "netlink": network.open_netlink,
        "io_uring": network.set_up_io_uring,
        "read the key": files.read_key,
        "read ~/.ssh": files.read_ssh_key,
        "read a file of the home": files.read_home,
        "read /etc/shadow": files.read_shadow,
        "read the key through a link": files.read_through_link,
        "write to the inputs": files.write_inputs,
        "write to the cache": files.write_cache,
        "write outside": files.write_outside,
        "change the program": files.change_program,
        "see other processes": processes.see_others,
        "read another's environment": processes.read_environment,
        "read files through another": processes.read_through_root,
        "signal another": processes.signal_other,
        "trace another": processes.trace_other,
        "read another's memory": processes.read_memory,
        "limit another": processes.limit_other,
        "start a process": processes.start_process,
        "start a process otherwise": processes.start_process_otherwise,
        "fork bomb": processes.fork_bomb,
        "start a program": processes.start_program,
        "become another program": processes.become_program,
        "start a setuid program": processes.start_setuid,
        "mount": kernel.mount,
        "new namespaces": kernel.make_namespaces,
        "keyring": kernel.read_keyring,
        "bpf": kernel.load_bpf,
        "perf events": kernel.open_perf,
        "userfaultfd": kernel.open_userfaultfd,
        "load a kernel": kernel.load_kernel,
        "load a module": kernel.load_module,
        "make a device": kernel.make_device,
        "open a disk": kernel.open_disk,
        "open the kernel's memory": kernel.open_memory,
        "32-bit calls": kernel.call_as_32_bit,
        "reserve all memory": resources.reserve_memory,
        "fill memory": resources.fill_memory,
        "fill shared memory": resources.fill_shared_memory,
        "memory without a name": resources.make_memory_file,
        "fill the disk": resources.fill_disk,
        "one endless file": resources.write_endless_file,
        "files without end": resources.make_files,
        "open too many files": resources.open_files,
        "threads without end": resources.start_threads,
        "run for ever": resources.run_for_ever,
    }
    return {function.__name__: Attempt(title=title, make=function) for title, function in ways.items()}


ATTEMPTS = _attempts()
