//! Has the linker leave out of the release program what it needs at no time: 23 KB.

fn main() {
    println!("cargo::rerun-if-changed=dist/build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        // Addresses that it is relocated by, packed: a linker that can't says so, and links. With glibc it takes 2.36 to run.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        // The index of what unwinds the stack: a panic ends the program, and a stripped one has no names for a backtrace.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    }
}
