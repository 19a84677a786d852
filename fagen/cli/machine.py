"""Verbs about this machine: doctor, devices."""

from __future__ import annotations

import typer

from fagen.cli import options as opt
from fagen.cli.output import pairs, print_json, size, table


def doctor(as_json: opt.Json = False) -> None:
    """Check what fagen needs and what this machine has. Exit code 3 if something is missing."""
    from fagen import doctor as checker

    checks = checker.checks()
    missing = [check.name for check in checks if check.verdict == "missing"]
    if as_json:
        print_json(ok=not missing, checks=[
            {"name": c.name, "verdict": c.verdict, "found": c.found, "hint": "" if c.ok else c.hint}
            for c in checks
        ])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.verdict:<8} {check.name:<{width}}  {check.found}")
            if not check.ok and check.hint:
                print(f"{'':<9}{'':<{width}}  hint: {check.hint}")
        print(f"missing: {', '.join(missing)}" if missing else "everything needed is here")
    if missing:
        raise typer.Exit(3)


def devices(as_json: opt.Json = False) -> None:
    """List what kernels can run on here, and the targets that can be generated for anywhere."""
    from fagen import devices as hardware
    from fagen.target import KNOWN_TARGETS

    probe = hardware.gpus()
    here = (*probe.gpus, hardware.host())
    if as_json:
        print_json(devices=here, trouble=probe.trouble, known_targets=KNOWN_TARGETS)
        return
    for device in here:
        target = device.target
        print(pairs({"device": f"{device.name}  {device.says}", "target": target.name} | (
            {"instructions": " ".join(target.isa) or "-", "cores": target.cores,
             "caches": f"L1 {size(target.l1_bytes)}, L2 {size(target.l2_bytes)}"}
            if target.kind == "cpu" else
            {"uuid": device.uuid, "driver": device.driver,
             "capability": ".".join(map(str, target.capability)), "SMs": target.sm_count,
             "caches": f"shared {size(target.shared_bytes)}, L2 {size(target.l2_bytes)}",
             "bandwidth": f"{target.memory_gb_s:g} GB/s"}
        ) | {"memory": size(device.memory_bytes)}) + "\n")
    if probe.trouble:
        print(f"GPUs: {probe.trouble}\n")
    print("Known targets, for --target:")
    print(table(("name", "kind", "what it is"), (
        (t.name, t.kind, " ".join(t.isa) if t.kind == "cpu" else
         f"compute capability {t.capability[0]}.{t.capability[1]}, {t.sm_count} SMs, "
         f"{size(t.shared_bytes)} shared, L2 {size(t.l2_bytes)}, {t.memory_gb_s:g} GB/s")
        for t in KNOWN_TARGETS.values()
    )))
