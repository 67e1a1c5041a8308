//! Has the linker leave out of the release program what it needs at no time: 23 KB.

fn main() {
    println!("cargo::rerun-if-changed=dist/build.rs");
    let is = |variable: &str, wanted: &str| std::env::var(variable).is_ok_and(|value| value == wanted);
    if is("PROFILE", "release") {
        // The index of what unwinds the stack: a panic ends the program, and a stripped one has no names for a backtrace.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        if is("CARGO_CFG_TARGET_ENV", "gnu") {
            // Addresses that it is relocated by, packed: a linker that can't says so, and links. It takes glibc 2.36 to run;
            // musl knows them since 1.2.4, which is younger than the one that many a Rust brings.
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
}
